#pragma once
// A plane of floats that is spread out by 2, where a row of the result fits into a register. Of the taps in a row of
// the kernel half of the lanes see numbers, of the next ones the other half: two of them are one product, and what they
// see is taken from a row of x once, for all rows of the kernel. Only AVX-512 has the instruction for it.
#include "../depthwise_conv2d.h"
#include "activation.h"
#include "unroll.h"

namespace crest::CREST_ISA {

#if defined(__AVX512F__)

template <int K>
class SpreadRows {
 public:
  using V = Vec<float>;
  static bool fit(int64_t h, int64_t w, int64_t out_w) { return h <= most_rows && w <= V::width && out_w <= V::width; }

  // Tap (0, 0) of the kernel falls `top` above and `left` before a result, spread out.
  SpreadRows(int64_t h, int64_t w, int64_t out_h, int64_t out_w, int64_t top, int64_t left)
      : h_(h), w_(w), out_h_(out_h), out_w_(out_w), top_(top), row_(0, w), result_(0, out_w), second_(0), there_{} {
    for (int m = 0; m < pairs; ++m) {
      int32_t from[V::width];
      for (int64_t l = 0; l < V::width; ++l) {
        const int64_t second = (l - left) & 1, column = (l - left + second) / 2 + m;
        from[l] = static_cast<int32_t>(column);
        second_ = static_cast<__mmask16>(second_ | second << l);
        if (column >= 0 && column < w) there_[m] = static_cast<__mmask16>(there_[m] | 1 << l);
      }
      from_[m] = _mm512_loadu_si512(from);
    }
    for (auto& row : seen_)
      for (V& v : row) v = V::zero();
  }

  // A plane. weight(t) is tap t of K K.
  template <class Weight>
  void operator()(const float* x, const Weight& weight, V bias, Activation activation, float* y) {
    V w[K][pairs];
    unroll<K>([&](auto r) CREST_INLINE {
      unroll<pairs>([&](auto m) CREST_INLINE {
        constexpr int t = r * K + 2 * m;
        const V first = V::all(weight(t)), second = V::all(2 * m + 1 < K ? weight(t + 1) : 0);
        w[r][m] = {(V::Register)_mm512_mask_blend_ps(second_, (__m512)first.v, (__m512)second.v)};
      });
    });
    for (int64_t i = 0; i < h_; ++i) {
      const __m512 row = (__m512)row_.load(x + i * w_).v;
      unroll<pairs>([&](auto m) CREST_INLINE {
        seen_[i + K / 2][m] = {(V::Register)_mm512_maskz_permutexvar_ps(there_[m], from_[m], row)};
      });
    }
    const auto result = [&](auto first, int64_t i) CREST_INLINE {  // by rows first, first + 2, ... of the kernel
      const V(*seen)[pairs] = seen_ + (i - top_ + first) / 2 + K / 2;
      V sum = bias;
      unroll<(K - first + 1) / 2>([&](auto p) CREST_INLINE {
        unroll<pairs>([&](auto m) CREST_INLINE { sum = fma(seen[p][m], w[first + 2 * p][m], sum); });
      });
      result_.store(activate(sum, activation), y + i * out_w_);
    };
    int64_t i = 0;
    if (top_ & 1) result(Index<1>{}, i++);
    for (; i + 1 < out_h_; i += 2) result(Index<0>{}, i), result(Index<1>{}, i + 1);
    if (i < out_h_) result(Index<0>{}, i);
  }

 private:
  static constexpr int pairs = (K + 1) / 2, most_rows = 16;

  int64_t h_, w_, out_h_, out_w_, top_;
  Lanes<V> row_, result_;
  __mmask16 second_, there_[pairs];
  __m512i from_[pairs];
  V seen_[most_rows + K][pairs];  // by rows of x, of which K / 2 before it and behind it are zero
};

// Whether f(SpreadRows<K>) was called.
template <int K, class F>
inline bool with_spread_rows(int64_t h, int64_t w, int64_t out_h, int64_t out_w, int64_t top, int64_t left,
                             const F& f) {
  if (!SpreadRows<K>::fit(h, w, out_w)) return false;
  SpreadRows<K> rows(h, w, out_h, out_w, top, left);
  f(rows);
  return true;
}

#else

template <int, class F>
inline bool with_spread_rows(int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, const F&) {
  return false;
}

#endif

}  // namespace crest::CREST_ISA
