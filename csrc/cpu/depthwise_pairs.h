#pragma once
// Small planes of floats: two rows of results side by side in a register, as they are in memory. Only AVX-512 has the
// instructions for it.
#include "unroll.h"

namespace crest::CREST_ISA {

#if defined(__AVX512F__)

// What kernels K wide with a stride of S have in common, for planes (h, w) of which `rows` rows of results are made.
template <int K, int S, int rows>
class PairedRows {
 public:
  using V = Vec<float>;
  static constexpr int pairs = (rows + 1) / 2;

  PairedRows(int64_t h, int64_t w, int64_t out_w, int64_t top, int64_t left)
      : h_(h), w_(w), out_w_(out_w), top_(top), left_(left), both_(0, 2 * out_w), upper_(0, out_w) {}

  // Pair t of results.
  CREST_INLINE V load(const float* y, int t) const { return lanes(t).load(y + 2 * t * out_w_); }
  CREST_INLINE void store(V v, float* y, int t) const { lanes(t).store(v, y + 2 * t * out_w_); }

 protected:
  CREST_INLINE const Lanes<V>& lanes(int t) const { return 2 * t + 1 < rows ? both_ : upper_; }

  // The lanes of a pair of results for which tap s in a row of the kernel falls on a number.
  __mmask16 seen(int64_t s) const {
    int lanes = 0;
    for (int64_t l = 0; l < 2 * out_w_; ++l) {
      const int64_t column = l % out_w_ * S - left_ + s;
      if (column >= 0 && column < w_) lanes |= 1 << l;
    }
    return static_cast<__mmask16>(lanes);
  }

  // f(Index<q>{}, where it is) for rows of x, from the one on which the first row of the kernel falls.
  template <int count, class F>
  CREST_INLINE void for_each_row(const float* plane, const F& f) const {
    const float* from = plane - top_ * w_;
    unroll<count>([&](auto q) CREST_INLINE {
      f(q, from);
      from += w_;
      asm("" : "+r"(from));  // or each row gets a pointer of its own, in memory, that is moved from plane to plane
    });
  }

  // f(Index<t>{}, Index<r>{}, Index<s>{}) for the taps by which pairs of results see the one of x that begins in row q.
  template <int q, class F>
  CREST_INLINE static void for_each_tap(Index<q>, const F& f) {
    unroll<pairs>([&](auto t) CREST_INLINE {
      constexpr int r = q - 2 * S * t;
      if constexpr (r >= 0 && r < K) unroll<K>([&](auto s) CREST_INLINE { f(t, Index<r>{}, s); });
    });
  }

  const int64_t h_, w_, out_w_, top_, left_;
  const Lanes<V> both_, upper_;
};

template <int K, int S, int rows>
class Pairs;

// With a stride of 1 rows of x lie side by side as well. Tap s of a row of the kernel is s - K / 2 lanes away, and that
// is left to the end: of products of unmoved rows, each s has a sum of its own.
template <int K, int rows>
class Pairs<K, 1, rows> : public PairedRows<K, 1, rows> {
 public:
  using Base = PairedRows<K, 1, rows>;
  using V = Vec<float>;
  using Base::pairs;

  Pairs(int64_t h, int64_t w, int64_t out_w, int64_t top, int64_t left)
      : Base(h, w, out_w, top, left), lower_(w, 2 * w) {
    for (int s = 0; s < K; ++s) seen_[s] = this->seen(s);
  }
  // Such planes keep their size.
  static bool fit(int64_t h, int64_t w, int64_t out_w, int64_t top, int64_t left) {
    return h == rows && w == out_w && w >= 4 && 2 * w <= V::width && top == K / 2 && left == K / 2;
  }

  // Adds what a kernel gives to y, of all pairs.
  CREST_INLINE void convolve(const float* x, const V* weight, V* y) const {
    V sum[pairs][K] = {};
    unroll<pairs>([&](auto t) CREST_INLINE { sum[t][K / 2] = y[t]; });
    for_each_pair(
        x, [&](V seen, auto t, auto r, auto s) CREST_INLINE { sum[t][s] = fma(seen, weight[r * K + s], sum[t][s]); });
    unroll<pairs>([&](auto t) CREST_INLINE {
      y[t] = sum[t][K / 2];
      unroll<K>([&](auto s) CREST_INLINE {
        if constexpr (s != K / 2) y[t] = y[t] + moved<s - K / 2>(sum[t][s], seen_[s]);
      });
    });
  }

  // Adds to sum (K, K) the products of grad, all pairs, and what each tap of the kernel sees.
  CREST_INLINE void add_products(const float* x, const V* grad, V* sum) const {
    V g[pairs][K];
    unroll<pairs>([&](auto t) CREST_INLINE {
      unroll<K>([&](auto s)
                    CREST_INLINE { g[t][s] = s == K / 2 ? grad[t] : moved<K / 2 - s>(grad[t], seen_[K - 1 - s]); });
    });
    for_each_pair(
        x, [&](V seen, auto t, auto r, auto s) CREST_INLINE { sum[r * K + s] = fma(seen, g[t][s], sum[r * K + s]); });
  }

 private:
  template <class F>
  CREST_INLINE void for_each_pair(const float* plane, const F& f) const {
    this->template for_each_row<rows + K / 2>(plane, [&](auto q, const float* from) CREST_INLINE {
      constexpr int row = q - K / 2;
      if constexpr (row + 1 < 0) return;
      const V seen = pair<row>(from);
      this->for_each_tap(q, [&](auto t, auto r, auto s) CREST_INLINE { f(seen, t, r, s); });
    });
  }

  // Rows `row` and row + 1 of x. Where two more follow, of which the last lanes get some, masks would only take time.
  template <int row>
  CREST_INLINE V pair(const float* from) const {
    if constexpr (row >= 0 && row + 3 < rows) return held(V::load(from));
    return (row < 0 ? lower_ : row + 1 < rows ? this->both_ : this->upper_).load(from);
  }

  template <int lanes>
  CREST_INLINE static V moved(V v, __mmask16 there) {
    return {(V::Register)_mm512_maskz_alignr_epi32(there, (__m512i)v.v, (__m512i)v.v, lanes & (V::width - 1))};
  }

  Lanes<V> lower_;
  __mmask16 seen_[K];
};

// With a stride of 2 one instruction takes what a tap sees from two rows of x, each in a register.
template <int K, int rows>
class Pairs<K, 2, rows> : public PairedRows<K, 2, rows> {
 public:
  using Base = PairedRows<K, 2, rows>;
  using V = Vec<float>;
  using Base::pairs;

  Pairs(int64_t h, int64_t w, int64_t out_w, int64_t top, int64_t left) : Base(h, w, out_w, top, left), row_(0, w) {
    for (int s = 0; s < K; ++s) {
      int32_t from[V::width];
      for (int64_t l = 0; l < V::width; ++l)
        from[l] = static_cast<int32_t>(l < out_w ? 2 * l - left + s : V::width + 2 * (l - out_w) - left + s);
      from_[s] = _mm512_loadu_si512(from);
      seen_[s] = this->seen(s);
    }
  }
  static bool fit(int64_t h, int64_t w, int64_t out_w, int64_t top, int64_t) {
    return h >= known && w <= V::width && 2 * out_w <= V::width && top <= K / 2 && top >= 0;
  }

  CREST_INLINE void convolve(const float* x, const V* weight, V* y) const {
    for_each_seen(x, [&](V seen, auto t, auto r, auto s) CREST_INLINE { y[t] = fma(seen, weight[r * K + s], y[t]); });
  }

  CREST_INLINE void add_products(const float* x, const V* grad, V* sum) const {
    for_each_seen(
        x, [&](V seen, auto t, auto r, auto s) CREST_INLINE { sum[r * K + s] = fma(seen, grad[t], sum[r * K + s]); });
  }

 private:
  static constexpr int known = 2 * rows - 1;  // rows of x that there are whatever the padding

  template <class F>
  CREST_INLINE void for_each_seen(const float* plane, const F& f) const {
    V x[4 * (pairs - 1) + K + 2];
    this->template for_each_row<4 * (pairs - 1) + K + 2>(plane, [&](auto row, const float* from) CREST_INLINE {
      const int64_t i = row - this->top_;
      x[row] = (row >= K / 2 || i >= 0) && (row < known || i < this->h_) ? row_.load(from) : V::zero();
      if constexpr (row >= 2)
        this->for_each_tap(Index<row - 2>{}, [&](auto t, auto r, auto s) CREST_INLINE {
          const __m512 a = (__m512)x[row - 2].v, b = (__m512)x[row].v;
          f(V{(V::Register)_mm512_maskz_permutex2var_ps(seen_[s], a, from_[s], b)}, t, r, s);
        });
    });
  }

  Lanes<V> row_;
  __m512i from_[K];
  __mmask16 seen_[K];
};

// Whether f(pairs) was called, with those for planes of out_h rows. Kernels of 5 x 5 are for the size that occurs.
template <int K, int S, int rows = 8, class F>
inline bool with_pairs(int64_t h, int64_t w, int64_t out_h, int64_t out_w, int64_t top, int64_t left, const F& f) {
  if constexpr (rows < 4) {
    return false;
  } else {
    constexpr bool there = K == 3 || rows == 7;
    if (!there || out_h != rows) return with_pairs<K, S, rows - 1>(h, w, out_h, out_w, top, left, f);
    if constexpr (there) {
      if (!Pairs<K, S, rows>::fit(h, w, out_w, top, left)) return false;
      f(Pairs<K, S, rows>(h, w, out_w, top, left));
      return true;
    }
  }
}

#else

template <int, int, class F>
inline bool with_pairs(int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, const F&) {
  return false;
}

#endif

}  // namespace crest::CREST_ISA
