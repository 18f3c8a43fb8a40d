#pragma once
#include "../group_soft_threshold.h"
#include "elementwise.cuh"
#include "group_sums.cuh"

namespace crest::cuda {

// The factor of a group, once for each of its cells. 0 only where all of it is finite: a NaN must not vanish.
template <class A>
struct WriteFactor {
  A* factors;
  A threshold;
  int64_t cells;

  __device__ void operator()(int64_t g, A sum, int lane) const {
    const A norm = sqrt(sum), by = norm <= threshold ? A{0} : 1 - threshold / norm;
    for (int64_t i = lane; i < cells; i += warp) factors[g * cells + i] = by;
  }
};

// x = S(x) factor. A run of memory has one factor, a column of rows has one.
template <class T>
struct Shrink {
  using A = Acc<T>;
  T* weight;
  const A* factors;
  int64_t length;  // of a run, or of a row
  bool runs;
  A l1;

  template <int width>
  bool packs() const {
    return aligned<width>(weight);
  }

  template <int width>
  __device__ void apply(int64_t i) const {
    auto x = load<width>(weight + i);
    int64_t row = i / length, column = i - row * length;
    for (int j = 0; j < width; ++j) {
      narrow(soft_threshold(widen(x.v[j]), l1) * factors[runs ? row : column] + A{0}, x.v[j]);  // -0 becomes 0
      if (++column == length) ++row, column = 0;
    }
    store(weight + i, x);
  }
};

template <class T, int threads = elementwise_threads>
void group_soft_threshold(const GroupSoftThreshold& a, void* stream, int64_t max_blocks = elementwise_blocks) {
  using A = Acc<T>;
  const Groups& groups = a.groups;
  constexpr const char* op = "group_soft_threshold_";
  A* factors = static_cast<A*>(a.sums) + groups.blocks() * groups.cells();
  group_sums<T, threads>(op, a.weight, a.sums, groups, a.l1, stream,
                         WriteFactor<A>{factors, A(a.threshold), groups.cells_of_group()});
  const bool runs = groups.outer == 1;
  const Shrink<T> shrink{static_cast<T*>(a.weight), factors, runs ? groups.inner : groups.width(), runs, A(a.l1)};
  elementwise<T, threads>(op, shrink, groups.outer * groups.width(), stream, max_blocks);
}

}  // namespace crest::cuda
