#pragma once
// Transposing a square of registers, and summing each of them: log2(width) rounds of the same two shuffles.
#include "unroll.h"

namespace crest::CREST_ISA {

// Where bit h of a lane is 0, a keeps it and b takes the lane of a that is h further; where it is 1, a takes the lane
// of b that is h before and b keeps it.
template <int h, class A, int bytes, int... lane>
inline void swap_lanes(Vec<A, bytes>& a, Vec<A, bytes>& b, std::integer_sequence<int, lane...>) {
  constexpr int width = Vec<A, bytes>::width;
  const auto first = __builtin_shufflevector(a.v, b.v, (lane & h ? width + lane - h : lane)...);
  b.v = __builtin_shufflevector(a.v, b.v, (lane & h ? width + lane : lane + h)...);
  a.v = first;
}

template <int h, class A, int bytes>
inline void swap_lanes(Vec<A, bytes>& a, Vec<A, bytes>& b) {
  swap_lanes<h>(a, b, std::make_integer_sequence<int, Vec<A, bytes>::width>{});
}

// Lane j of rows[i] becomes lane i of rows[j].
template <class A, int bytes, int h = Vec<A, bytes>::width / 2>
CREST_INLINE inline void transpose(Vec<A, bytes>* rows) {
  if constexpr (h > 0) {
    unroll<Vec<A, bytes>::width>([&](auto i) CREST_INLINE {
      if constexpr (!(i & h)) swap_lanes<h>(rows[i], rows[i + h]);
    });
    transpose<A, bytes, h / 2>(rows);
  }
}

// Planes to pixels: number p of V::width planes, which are `pitch` apart, goes to at(p), for p below count.
template <class V, class At>
CREST_INLINE inline void turn(const float* from, int64_t pitch, int64_t count, const At& at) {
  const auto some = [&](int64_t p, int n) CREST_INLINE {
    V square[V::width];
    unroll<V::width>([&](auto l) CREST_INLINE { square[l] = load_first<V>(from + l * pitch + p, n); });
    transpose(square);
    unroll<V::width>([&](auto i) CREST_INLINE {
      if (i < n) square[i].store(at(p + i));
    });
  };
  int64_t p = 0;
  for (; p + V::width <= count; p += V::width) some(p, V::width);
  if (p < count) some(p, static_cast<int>(count - p));
}

// Pixels, `apart` numbers from each other, to planes, of which there are `planes`, V::width or fewer.
template <class V>
CREST_INLINE inline void turn_back(const float* from, int64_t apart, int64_t count, float* to, int64_t pitch,
                                   int planes = V::width) {
  const auto some = [&](int64_t p, int n) CREST_INLINE {
    V square[V::width];
    unroll<V::width>([&](auto i) CREST_INLINE { square[i] = i < n ? V::load(from + (p + i) * apart) : V::zero(); });
    transpose(square);
    unroll<V::width>([&](auto l) CREST_INLINE {
      if (l < planes) store_first(square[l], to + l * pitch + p, n);
    });
  };
  int64_t p = 0;
  for (; p + V::width <= count; p += V::width) some(p, V::width);
  if (p < count) some(p, static_cast<int>(count - p));
}

// Lane i of the result is the sum of row(i).
template <class A, int count = Vec<A>::width, class Row>
inline Vec<A> sums(const Row& row, int first = 0) {
  if constexpr (count == 1) {
    return row(first);
  } else {
    constexpr int h = count / 2;
    Vec<A> a = sums<A, h>(row, first), b = sums<A, h>(row, first + h);
    swap_lanes<h>(a, b);
    return a + b;
  }
}

}  // namespace crest::CREST_ISA
