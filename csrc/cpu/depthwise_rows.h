#pragma once
// Rows of one plane of floats, as a kernel K wide with a stride of S reads them, straight from memory. Where the plane
// ends, masks keep to it: so nothing is copied, and neighbours are never touched.
#include "every_other.h"
#include "unroll.h"

namespace crest::CREST_ISA {

// Rows of results that are summed at once.
constexpr int tile_rows = register_count > 16 ? 7 : 4;

// Whether so few rows are missing above and below, of h, as `Rows` allows for.
template <int K, int S>
constexpr bool few_missing(int64_t h, int64_t out_h, int64_t top) {
  return top <= K / 2 && (out_h - 1) * S - top + K - h <= K / 2;
}

// What a register of results meets, whose first tap falls on (row, column) of the plane (h, w). `edge`: some of it may
// lie beyond the left or the right.
template <int K, int S, bool edge>
class Rows {
 public:
  using V = Vec<float>;
  // Columns from the first tap on that the loads below reach.
  static constexpr int64_t reach = S * V::width + K - 1;

  CREST_INLINE Rows(const float* plane, int64_t h, int64_t w, int64_t row, int64_t column)
      : from_(plane + row * w + column), h_(h), w_(w), row_(row) {
    const Stretch there(-column, w - column);
    if constexpr (edge) unroll<loads>([&](auto i) CREST_INLINE { lanes_[i] = there.from(offset(i)); });
  }

  // The K taps in row p of the kernel, or of results further down, of which there are `rows`; false if there is no such
  // row, which may be so of the first and the last K / 2.
  template <int rows, int p>
  CREST_INLINE bool taps(Index<p>, V* x) const {
    if (p < K / 2 && row_ + p < 0) return false;
    if (p > (rows - 1) * S + K / 2 && row_ + p >= h_) return false;
    const float* from = from_ + p * w_;
    if constexpr (S == 1) {
      unroll<K>([&](auto s) CREST_INLINE { x[s] = load(from, s); });
    } else {
      unroll<(K + 1) / 2>([&](auto i) CREST_INLINE {
        const V a = load(from, 2 * i), b = load(from, 2 * i + 1);
        x[2 * i] = every_other<0>(a, b);
        if constexpr (2 * i + 1 < K) x[2 * i + 1] = every_other<1>(a, b);
      });
    }
    return true;
  }

  // Between the lanes of taps and neighbours in a row, either way.
  CREST_INLINE static V in_order(V v) { return S == 2 ? reorder(v) : v; }

 private:
  // A row takes so many loads; where the one with number i begins. With a stride of 2 two neighbours hold two taps.
  static constexpr int loads = S == 1 ? K : K + 1;
  static constexpr int offset(int i) { return S == 1 ? i : i / 2 * 2 + i % 2 * V::width; }

  CREST_INLINE V load(const float* from, int i) const {
    if constexpr (edge) return lanes_[i].load(from + offset(i));
    return held(V::load(from + offset(i)));
  }

  const float* from_;
  int64_t h_, w_, row_;
  Lanes<V> lanes_[edge ? loads : 1];
};

// Asks for rows that are w numbers apart, so many registers of each from p on. The processor's own prefetcher follows
// neither so many rows at once nor what is written. Past the end it does nothing.
template <int rows, int registers, bool written>
CREST_INLINE inline void fetch_rows(const float* p, int64_t w) {
  constexpr int line = 64 / sizeof(float), lines = (registers * Vec<float>::width + line - 1) / line;
  unroll<rows>([&](auto r) CREST_INLINE {
    unroll<lines>([&](auto i) CREST_INLINE { __builtin_prefetch(p + r * w + i * line, written); });
  });
}

// f(Index<n>{}, row, column, count) for tiles of n rows and `count` columns: as high as can be, then lower ones.
// `again`: the last one of a row goes over some columns again, so as to be whole.
template <int width, int most, bool again, class F>
CREST_INLINE inline void for_each_tile(int64_t p, int64_t rows, int64_t columns, const F& f) {
  for (; p + most <= rows; p += most)
    for (int64_t j = 0; j < columns; j += width)
      f(Index<most>{}, p, again ? (columns < width ? 0 : min(j, columns - width)) : j,
        static_cast<int>(min<int64_t>(again ? columns : columns - j, width)));
  if constexpr (most > 1)
    if (p < rows) for_each_tile<width, most / 2, again>(p, rows, columns, f);
}

}  // namespace crest::CREST_ISA
