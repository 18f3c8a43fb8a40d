#pragma once
// Sums of squares over the groups of a weight that is soft-thresholded by l1 first (by 0: as it is).
#include "../groups.h"
#include "vec.h"

namespace crest::CREST_ISA {

// sign(x) max(|x| - l1, 0); a NaN stays one.
template <class A, int bytes>
inline Vec<A, bytes> soft_threshold(Vec<A, bytes> x, A l1) {
  using V = Vec<A, bytes>;
  if (l1 == 0) return x;  // as most callers have it: a loop takes this out
  const typename V::Register high = V::all(l1).v, low = -high, upper = x.v > high ? high : x.v;
  return {x.v - (upper < low ? low : upper)};
}

template <class A, int bytes>
inline Vec<A, bytes> square(Vec<A, bytes> x, A l1) {
  x = soft_threshold(x, l1);
  return x * x;
}

// Of a run of n numbers; in four sums, so that no addition waits for the one before, and each of a quarter of the run:
// memory gives more to four streams than to one.
template <class T>
inline Acc<T> sum_of_squares(const T* x, int64_t n, Acc<T> l1) {
  using V = Vec<Acc<T>>;
  constexpr int together = 4;
  const int64_t quarter = n / (together * V::width) * V::width;
  V sums[together] = {};
  for (int64_t k = 0; k < quarter; k += V::width)
    for (int j = 0; j < together; ++j) {
      const T* at = x + j * quarter + k;
      prefetch<1024>(at);
      sums[j] = sums[j] + square(V::load(at), l1);
    }
  int64_t i = together * quarter;
  for (; i + V::width <= n; i += V::width) sums[0] = sums[0] + square(V::load(x + i), l1);
  One<Acc<T>> rest = {};
  for (; i < n; ++i) rest = rest + square(One<Acc<T>>::load(x + i), l1);
  return ((sums[0] + sums[1]) + (sums[2] + sums[3])).sum() + rest.v[0];
}

// sums[j] = (add ? sums[j] : 0) + the squares of `rows` rows in column j
template <int rows, class T>
inline void add_rows(const T* weight, int64_t width, Acc<T> l1, Acc<T>* sums, bool add) {
  for_each_register<Acc<T>>(0, width, [&](auto v, int64_t j) {
    using V = decltype(v);
    V sum = add ? V::load(sums + j) : V::zero();
    for (int row = 0; row < rows; ++row) {
      prefetch(weight + row * width + j);
      sum = sum + square(V::load(weight + row * width + j), l1);
    }
    sum.store(sums + j);
  });
}

// sums[block], (width,), for the blocks [begin, end); outer > 1, or no weight at all.
template <class T>
inline void column_sums(const T* weight, const Groups& groups, Acc<T> l1, Acc<T>* sums, int64_t begin, int64_t end) {
  const int64_t width = groups.width(), rows = groups.rows();
  for (int64_t block = begin; block < end; ++block) {
    const int64_t first = block * rows, last = min(first + rows, groups.outer);
    Acc<T>* to = sums + block * width;
    int64_t row = first;
    if (first >= last) add_rows<0>(weight, width, l1, to, false);
    for (; row + 4 <= last; row += 4) add_rows<4>(weight + row * width, width, l1, to, row > first);
    for (; row < last; ++row) add_rows<1>(weight + row * width, width, l1, to, row > first);
  }
}

// f(g, sum of the squares of group g) for each group, from what column_sums left.
template <class A, class F>
inline void for_each_sum(const Groups& groups, A* sums, const F& f) {
  for (int64_t block = 1; block < groups.blocks(); ++block)
    for_each_register<A>(0, groups.width(), [&](auto v, int64_t j) {
      using V = decltype(v);
      (V::load(sums + j) + V::load(sums + block * groups.width() + j)).store(sums + j);
    });
  for (int64_t g = 0; g < groups.count; ++g) {
    const A* of_group = sums + g * groups.inner;
    Vec<A> sum = {};
    int64_t i = 0;
    for (; i + Vec<A>::width <= groups.inner; i += Vec<A>::width) sum = sum + Vec<A>::load(of_group + i);
    A total = sum.sum();
    for (; i < groups.inner; ++i) total += of_group[i];
    f(g, total);
  }
}

}  // namespace crest::CREST_ISA
