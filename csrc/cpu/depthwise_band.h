#pragma once
// Some rows of one plane, as a kernel K wide with a stride of S reads them: with the padding around, as numbers that
// sums are kept in, spread out, and for a stride of 2 the even columns apart from the odd ones. So a tap of the kernel
// reads consecutive numbers, whatever the borders, and a row of it stays in the first level of cache.
#include "unroll.h"

namespace crest::CREST_ISA {

// One dimension of a plane: positions p = first + 0, 1, ... of the padded and spread plane.
struct Axis {
  int64_t size, spread;
  // The element at a position, or -1 for a zero.
  int64_t at(int64_t position) const {
    if (position < 0 || (spread > 1 && position % spread != 0)) return -1;
    const int64_t i = spread > 1 ? position / spread : position;
    return i < size ? i : -1;
  }
};

template <class A, int K, int S>
class Band {
 public:
  using V = Vec<A>;
  static constexpr int64_t most_rows = 28 / S, most_columns = 128;  // of the result

  // For the result's rows [i, i + rows) and columns [j, j + columns). Zeros stay where they are from one plane to the
  // next: `again` says that the last call was for the same part of another plane.
  template <class T>
  void fill(const T* plane, Axis height, Axis width, int64_t top, int64_t left, int64_t i, int64_t rows, int64_t j,
            int64_t columns, bool again) {
    const int64_t needed = (columns + V::width - 1) / V::width * V::width + (K - 1) / S;
    for (int64_t p = 0; p < (rows - 1) * S + K; ++p) {
      const int64_t row = height.at(i * S - top + p);
      A* to = data_ + p * S * pitch;
      if (!again)
        for (int f = 0; f < S; ++f) clear(to + f * pitch, needed);
      if (row < 0) continue;
      const T* from = plane + row * width.size;
      if constexpr (S == 2) {
        split(from, width.size, j * S - left, needed, to);
      } else if (width.spread == 2) {
        spread_two(from, width.size, j - left, needed, to);
      } else if (width.spread > 1) {
        spread(from, width, j - left, needed, to);
      } else {
        copy(from, width.size, j - left, needed, to);
      }
    }
  }

  // Row p for the results from column j on; and what the tap in column s of the kernel meets `row` rows further: at a
  // distance that the compiler knows.
  const A* at(int64_t p, int64_t j) const { return data_ + p * S * pitch + j; }
  CREST_INLINE static V tap(const A* from, int row, int s) { return V::load(from + (row * S + s % S) * pitch + s / S); }

  // The same for results from row p on, a row of taps at a time.
  struct From {
    const A* data;
    CREST_INLINE static V in_order(V v) { return v; }
    template <int rows, int row>
    CREST_INLINE bool taps(Index<row>, V* x) const {
      unroll<K>([&](auto s) CREST_INLINE { x[s] = tap(data, row, s); });
      return true;
    }
  };
  From from(int64_t p, int64_t j) const { return {at(p * S, j)}; }

 private:
  static constexpr int64_t pitch = most_columns + 2 * V::width + 8;

  static void clear(A* to, int64_t needed) {
    for (int64_t q = 0; q < needed; q += V::width) V::zero().store(to + q);
  }

  // What a register holds beyond the row is zero.
  template <class T>
  static void copy(const T* from, int64_t size, int64_t first, int64_t needed, A* to) {
    const int64_t low = max(-first, int64_t{0}), high = min(size - first, needed);
    for (int64_t q = low; q < high; q += V::width)
      load_first<V>(from + first + q, static_cast<int>(min<int64_t>(high - q, V::width))).store(to + q);
  }

  template <class T>
  static void spread(const T* from, Axis width, int64_t first, int64_t needed, A* to) {
    for (int64_t i = first > 0 ? (first + width.spread - 1) / width.spread : 0; i < width.size; ++i) {
      const int64_t q = i * width.spread - first;
      if (q >= needed) break;
      to[q] = widen(from[i]);
    }
  }

  // The same for a spread of 2, a register at a time.
  template <class T>
  static void spread_two(const T* from, int64_t size, int64_t first, int64_t needed, A* to) {
    constexpr auto lanes = std::make_integer_sequence<int, V::width>{};
    for (int64_t i = first > 0 ? (first + 1) / 2 : 0, q = 2 * i - first; i < size && q < needed; i += V::width) {
      const V x = load_first<V>(from + i, static_cast<int>(min<int64_t>(size - i, V::width)));
      with_zeros<0>(x, lanes).store(to + q);
      q += V::width;
      if (q < needed) with_zeros<V::width / 2>(x, lanes).store(to + q);
      q += V::width;
    }
  }

  template <class T>
  static void split(const T* from, int64_t size, int64_t first, int64_t needed, A* to) {
    constexpr auto lanes = std::make_integer_sequence<int, V::width>{};
    const int64_t low = max(-first, int64_t{0});  // positions of padding
    const int64_t count = min(size - (first + low), 2 * needed - low);
    A* even = to + low % 2 * pitch + low / 2;  // of the elements from first + low on
    A* odd = to + (low + 1) % 2 * pitch + (low + 1) / 2;
    for (int64_t q = 0; q < count; q += 2 * V::width) {
      const int left = static_cast<int>(min<int64_t>(count - q, 2 * V::width));
      const V a = load_first<V>(from + first + low + q, min(left, V::width));
      const V b = load_first<V>(from + first + low + q + V::width, max(left - V::width, 0));
      every_other<0>(a, b, lanes).store(even + q / 2);
      every_other<1>(a, b, lanes).store(odd + q / 2);
    }
  }

  template <int from, int... lane>
  static V with_zeros(V a, std::integer_sequence<int, lane...>) {
    const V zero = V::zero();
    return {__builtin_shufflevector(a.v, zero.v, (lane % 2 ? V::width : from + lane / 2)...)};
  }

  template <int from, int... lane>
  static V every_other(V a, V b, std::integer_sequence<int, lane...>) {
    return {__builtin_shufflevector(a.v, b.v, (2 * lane + from)...)};
  }

  alignas(64) A data_[((most_rows - 1) * S + K) * S * pitch];
};

}  // namespace crest::CREST_ISA
