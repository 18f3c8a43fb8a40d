#pragma once
// A plane of floats that is spread out by 2, as the gradient of a stride of 2 sees it: of the taps on each row and each
// column of the result only those of one parity fall on numbers, so a quarter of the products are left.
#include "../depthwise_conv2d.h"
#include "activation.h"
#include "depthwise_rows.h"
#include "unroll.h"

namespace crest::CREST_ISA {

struct SpreadPlane {
  const float* x;  // (h, w)
  int64_t h, w;
  float* y;  // (out_h, out_w)
  int64_t out_h, out_w;
  Vec<float> bias;
  Activation activation;
};

// Numbers `from` and on of both, in turn.
template <int from, int... lane>
inline Vec<float> mixed(Vec<float> a, Vec<float> b, std::integer_sequence<int, lane...>) {
  return {__builtin_shufflevector(a.v, b.v, (from + lane / 2 + lane % 2 * Vec<float>::width)...)};
}

// Of row i of y, two registers from column j on. They see the rows of x from `row` on, first by tap first_row, and the
// columns from `at` on: load(from, q) gives q later ones. Results of either parity are summed apart, and then mixed.
template <int K, int first_row, int first_column, class Load>
CREST_INLINE inline void spread_tile(const SpreadPlane& a, const Vec<float>* weight, int64_t i, int64_t row, int64_t j,
                                     int64_t at, const Load& load) {
  using V = Vec<float>;
  constexpr auto lanes = std::make_integer_sequence<int, V::width>{};
  float* y = a.y + i * a.out_w + j;
  fetch_rows<1, 2, true>(y + 4 * a.out_w, a.out_w);  // four rows later
  V even = a.bias, odd = a.bias;
  unroll<(K - first_row + 1) / 2>([&](auto p) CREST_INLINE {
    if (row + p < 0 || row + p >= a.h) return;
    const float* from = a.x + (row + p) * a.w + at;
    unroll<(K + 1) / 2>([&](auto q) CREST_INLINE {
      constexpr int r = (first_row + 2 * p) * K, s = 2 * q + first_column;
      const V seen = load(from + q, q);
      if constexpr (s < K) even = fma(seen, weight[r + s], even);
      if constexpr (s >= 1) odd = fma(seen, weight[r + s - 1], odd);
    });
  });
  const int left = static_cast<int>(min<int64_t>(a.out_w - j, 2 * V::width));
  store_first(activate(mixed<0>(even, odd, lanes), a.activation), y, min(left, V::width));
  if (left > V::width)
    store_first(activate(mixed<V::width / 2>(even, odd, lanes), a.activation), y + V::width, left - V::width);
}

// All of it. Tap (0, 0) of the kernel falls `top` above and `left` before a result, spread out.
template <int K>
inline void spread_plane(const SpreadPlane& a, const Vec<float>* weight, int64_t top, int64_t left) {
  using V = Vec<float>;
  constexpr int loads = (K + 1) / 2;
  const auto columns = [&](auto first_column, int64_t j) CREST_INLINE {
    const int64_t at = (j - left + first_column) / 2;
    const auto rows = [&](const auto& load) CREST_INLINE {
      for (int64_t i = 0; i < a.out_h; ++i)
        if ((i - top) & 1)
          spread_tile<K, 1, first_column>(a, weight, i, (i - top + 1) / 2, j, at, load);
        else
          spread_tile<K, 0, first_column>(a, weight, i, (i - top) / 2, j, at, load);
    };
    if (at >= 0 && at + loads - 1 + V::width <= a.w)
      return rows([&](const float* from, int) CREST_INLINE { return V::load(from); });
    Lanes<V> there[loads];
    unroll<loads>([&](auto q) CREST_INLINE { there[q] = Lanes<V>(-at - q, a.w - at - q); });
    rows([&](const float* from, int q) CREST_INLINE { return there[q].load(from); });
  };
  for (int64_t j = 0; j < a.out_w; j += 2 * V::width) left & 1 ? columns(Index<1>{}, j) : columns(Index<0>{}, j);
}

}  // namespace crest::CREST_ISA
