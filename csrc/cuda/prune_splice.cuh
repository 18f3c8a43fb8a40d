#pragma once
#include "../prune_splice.h"
#include "elementwise.cuh"
#include "hysteresis.cuh"

namespace crest::cuda {

template <class T>
struct PruneSpliceTo {
  const T* weight;
  bool* mask;
  Acc<T> low, high;

  template <int width>
  bool packs() const {
    return aligned<width>(weight) && aligned<width>(mask);
  }

  template <int width>
  __device__ void apply(int64_t i) const {
    const auto w = load<width>(weight + i);
    auto keep = load<width>(mask + i);
    for (int j = 0; j < width; ++j) keep.v[j] = hysteresis(widen(w.v[j]), keep.v[j], low, high);
    store(mask + i, keep);
  }
};

template <class T, int threads = elementwise_threads>
void prune_splice(const PruneSplice& a, void* stream, int64_t max_blocks = elementwise_blocks) {
  const PruneSpliceTo<T> op{static_cast<const T*>(a.weight), a.mask, Acc<T>(a.low), Acc<T>(a.high)};
  elementwise<T, threads>("prune_splice_", op, a.n, stream, max_blocks);
}

}  // namespace crest::cuda
