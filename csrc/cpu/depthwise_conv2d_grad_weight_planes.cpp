// Where channels do not come last: a register holds neighbours of a row, and each tap has a register of sums.
#include "../depthwise_conv2d_grad_weight.h"
#include "depthwise_band.h"
#include "depthwise_pairs.h"
#include "depthwise_rows.h"
#include "depthwise_taps.h"
#include "transpose.h"

namespace crest::CREST_ISA {
namespace {

// `rows` rows of grad at once, so that a row of x, once loaded, meets all rows of the kernel.
template <int K, int S, int rows, class T, class Source>
CREST_INLINE inline void tile(const Source& source, const T* grad, int64_t out_w, int count, Vec<Acc<T>>* sums) {
  using V = Vec<Acc<T>>;
  V sum[K * K], g[rows];  // a copy of the sums, which are in memory
  unroll<K * K>([&](auto t) CREST_INLINE { sum[t] = sums[t]; });
  unroll<rows>([&](auto t) CREST_INLINE { g[t] = source.in_order(load_first<V>(grad + t * out_w, count)); });
  unroll<(rows - 1) * S + K>([&](auto row) CREST_INLINE {
    V x[K];
    if (!source.template taps<rows>(row, x)) return;
    unroll<K>([&](auto s) CREST_INLINE {
      unroll<rows>([&](auto t) CREST_INLINE {
        constexpr int r = row - t * S;
        if constexpr (r >= 0 && r < K) sum[r * K + s] = fma(x[s], g[t], sum[r * K + s]);
      });
    });
  });
  unroll<K * K>([&](auto t) CREST_INLINE { sums[t] = sum[t]; });
}

// Planes of floats are read where they are.
template <int K, int S>
inline void add(const DepthwiseConv2dGradWeight& a, const float* grad, const float* x, Vec<float>* sum) {
  const auto at = [&](auto n, int64_t i, int64_t j, int count) {
    const int64_t row = i * S - a.top, column = j * S - a.left;
    const float* g = grad + i * a.out_w + j;
    fetch_rows<n * S, S, false>(x + ((i + n) * S + 1) * a.w + j * S, a.w);
    fetch_rows<n, 1, false>(g + n * a.out_w, a.out_w);
    if (column < 0 || column + Rows<K, S, true>::reach > a.w)
      tile<K, S, n>(Rows<K, S, true>(x, a.h, a.w, row, column), g, a.out_w, count, sum);
    else
      tile<K, S, n>(Rows<K, S, false>(x, a.h, a.w, row, column), g, a.out_w, count, sum);
  };
  for_each_tile<Vec<float>::width, K == 3 ? tile_rows : 4, false>(0, a.out_h, a.out_w, at);
}

// Others go through a band, row by row. `again`: the last call was for a plane like this one.
template <int K, int S, class T>
inline void add(const DepthwiseConv2dGradWeight& a, const T* grad, const T* x, Vec<Acc<T>>* sum,
                Band<Acc<T>, K, S>& band, bool again) {
  for (int64_t j = 0; j < a.out_w; j += band.most_columns)
    for (int64_t i = 0; i < a.out_h; i += band.most_rows) {
      const int64_t rows = min(a.out_h - i, band.most_rows), columns = min(a.out_w - j, band.most_columns);
      band.fill(x, {a.h, 1}, {a.w, 1}, a.top, a.left, i, rows, j, columns,
                again && a.out_h <= band.most_rows && a.out_w <= band.most_columns);
      for_each_tile<Vec<Acc<T>>::width, 4, false>(0, rows, columns, [&](auto n, int64_t p, int64_t q, int count) {
        tile<K, S, n>(band.from(p, q), grad + (i + p) * a.out_w + j + q, a.out_w, count, sum);
      });
    }
}

// Small planes, by Pairs.
template <int K, class Pairs>
void paired_planes(const DepthwiseConv2dGradWeight& a, const Pairs& pairs, int64_t begin, int64_t end) {
  using V = Vec<float>;
  const int64_t size = a.h * a.w, out_size = a.out_h * a.out_w;
  for (int64_t o = begin; o < end; ++o) {
    const float* grad = static_cast<const float*>(a.grad) + o * out_size;
    const float* x = static_cast<const float*>(a.x) + o / a.multiplier * size;
    V sum[K * K] = {};
    for (int64_t n = 0; n < a.n; ++n, grad += a.c * a.multiplier * out_size, x += a.c * size) {
      // Those of the next channel, which are elsewhere for each image.
      for (int64_t i = 0; i < size; i += V::width) prefetch<0>(x + size + i);
      for (int64_t i = 0; i < out_size; i += V::width) prefetch<0>(grad + out_size + i);
      V g[Pairs::pairs];
      unroll<Pairs::pairs>([&](auto t) CREST_INLINE { g[t] = pairs.load(grad, t); });
      pairs.add_products(x, g, sum);
    }
    float* y = static_cast<float*>(a.grad_weight) + o * K * K;
    for (int t = 0; t < K * K; t += V::width) {
      const V some = sums<float>([&](int i) { return t + i < K * K ? sum[t + i] : V::zero(); });
      store_first(some, y + t, min(K * K - t, V::width));
    }
  }
}

// Any kernel: one tap after the other.
template <class T>
void any_planes(const DepthwiseConv2dGradWeight& a, int64_t begin, int64_t end) {
  using A = Acc<T>;
  for (int64_t u = begin * a.kh * a.kw; u < end * a.kh * a.kw; ++u) {
    const int64_t s = u % a.kw, r = u / a.kw % a.kh, o = u / a.kw / a.kh;
    const Taps rows(r * a.dilation_h - a.top, a.out_h, a.stride_h, 1, a.h);
    const Taps columns(s * a.dilation_w - a.left, a.out_w, a.stride_w, 1, a.w);
    Vec<A> many = Vec<A>::zero();
    A one = 0;
    for (int64_t n = 0; n < a.n; ++n)
      for (int64_t i = rows.first, row = rows.at; i < rows.end; ++i, row += rows.advance) {
        const T* g = static_cast<const T*>(a.grad) + ((n * a.c * a.multiplier + o) * a.out_h + i) * a.out_w;
        const T* x = static_cast<const T*>(a.x) + ((n * a.c + o / a.multiplier) * a.h + row) * a.w + columns.at;
        int64_t j = columns.first;
        if (a.stride_w == 1)
          for (; j + Vec<A>::width <= columns.end; j += Vec<A>::width, x += Vec<A>::width)
            many = fma(Vec<A>::load(g + j), Vec<A>::load(x), many);
        for (; j < columns.end; ++j, x += a.stride_w) one += widen(g[j]) * widen(*x);
      }
    narrow(many.sum() + one, static_cast<T*>(a.grad_weight)[u]);
  }
}

template <class T, int K, int S>
void planes(const DepthwiseConv2dGradWeight& a, int64_t begin, int64_t end) {
  if constexpr (sizeof(T) == sizeof(float)) {
    if (with_pairs<K, S>(a.h, a.w, a.out_h, a.out_w, a.top, a.left,
                         [&](const auto& pairs) { paired_planes<K>(a, pairs, begin, end); }))
      return;
    if (!few_missing<K, S>(a.h, a.out_h, a.top)) return any_planes<T>(a, begin, end);
  }
  [[maybe_unused]] Band<Acc<T>, K, S> band;
  for (int64_t o = begin; o < end; ++o) {
    Vec<Acc<T>> sum[K * K] = {};
    for (int64_t n = 0; n < a.n; ++n) {
      const T* grad = static_cast<const T*>(a.grad) + (n * a.c * a.multiplier + o) * a.out_h * a.out_w;
      const T* x = static_cast<const T*>(a.x) + (n * a.c + o / a.multiplier) * a.h * a.w;
      if constexpr (sizeof(T) == sizeof(float))
        add<K, S>(a, grad, x, sum);
      else
        add<K, S>(a, grad, x, sum, band, n > 0);
    }
    T* y = static_cast<T*>(a.grad_weight) + o * K * K;
    for (int t = 0; t < K * K; ++t) narrow(sum[t].sum(), y[t]);
  }
}

}  // namespace

void depthwise_conv2d_grad_weight_planes(const DepthwiseConv2dGradWeight& a, int64_t begin, int64_t end) {
  dispatch(a.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const bool dense = a.dilation_h == 1 && a.dilation_w == 1 && a.kh == a.kw && a.stride_h == a.stride_w;
    if (dense && with_kernel<T>(a.kh, a.stride_h, [&](auto k, auto s) { planes<T, k, s>(a, begin, end); })) return;
    any_planes<T>(a, begin, end);
  });
}

}  // namespace crest::CREST_ISA
