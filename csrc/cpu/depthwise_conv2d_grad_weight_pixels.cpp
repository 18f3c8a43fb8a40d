// Where channels come last: a register holds neighbouring channels, and each tap has a register of sums.
#include "../depthwise_conv2d_grad_weight.h"
#include "depthwise_taps.h"
#include "unroll.h"

namespace crest::CREST_ISA {
namespace {

// Channels whose sums stay in the first level of cache: many, as a pixel's lie one after the other, and what is read in
// order comes at twice the speed from beyond the second level.
template <int K>
constexpr int64_t most_channels = K == 3 ? 512 : 128;

// `columns` pixels of a row of grad at once, so that a register of x, once loaded, meets a row of the kernel.
template <class V, int K, int S, int columns, bool edge, class T>
void tile(const DepthwiseConv2dGradWeight& a, const T* grad, const T* image, int64_t i, int64_t j, int64_t channels,
          Acc<T>* sums) {
  const int64_t top = i * S - a.top, left = j * S - a.left;
  for (int64_t channel = 0; channel < channels; channel += V::width) {
    V g[columns];
    unroll<columns>([&](auto t) CREST_INLINE { g[t] = V::load(grad + t * a.c + channel); });
    for (int r = 0; r < K; ++r) {
      if (top + r < 0 || top + r >= a.h) continue;
      V sum[K];
      Acc<T>* kept = sums + r * K * most_channels<K> + channel;
      unroll<K>([&](auto s) CREST_INLINE { sum[s] = V::load(kept + s * most_channels<K>); });
      const T* x = image + ((top + r) * a.w + left) * a.c + channel;
      unroll<(columns - 1) * S + K>([&](auto q) CREST_INLINE {
        if (edge && (left + q < 0 || left + q >= a.w)) return;
        const V seen = V::load(x + q * a.c);
        unroll<columns>([&](auto t) CREST_INLINE {
          constexpr int s = q - t * S;
          if constexpr (s >= 0 && s < K) sum[s] = fma(seen, g[t], sum[s]);
        });
      });
      unroll<K>([&](auto s) CREST_INLINE { sum[s].store(kept + s * most_channels<K>); });
    }
  }
}

// Any kernel: one tap after the other.
template <class T>
void any_pixels(const DepthwiseConv2dGradWeight& a, int64_t begin, int64_t end) {
  using A = Acc<T>;
  const int64_t m = a.c * a.multiplier, taps = a.kh * a.kw;
  for (int64_t t = 0; t < taps; ++t) {
    const Taps rows(t / a.kw * a.dilation_h - a.top, a.out_h, a.stride_h, 1, a.h);
    const Taps columns(t % a.kw * a.dilation_w - a.left, a.out_w, a.stride_w, 1, a.w);
    const auto step = [&](auto v, int64_t o) {
      using V = decltype(v);
      V sum = V::zero();
      for (int64_t n = 0; n < a.n; ++n)
        for (int64_t i = rows.first, row = rows.at; i < rows.end; ++i, row += rows.advance)
          for (int64_t j = columns.first, column = columns.at; j < columns.end; ++j, column += columns.advance) {
            const V g = V::load(static_cast<const T*>(a.grad) + ((n * a.out_h + i) * a.out_w + j) * m + o);
            const V x = V::load(static_cast<const T*>(a.x) + ((n * a.h + row) * a.w + column) * a.c + o / a.multiplier);
            sum = g * x + sum;
          }
      T result[V::width];
      sum.store(result);
      for (int l = 0; l < V::width; ++l) static_cast<T*>(a.grad_weight)[(o + l) * taps + t] = result[l];
    };
    if (a.multiplier == 1) {
      for_each_overlapping<A>(end - begin, [&](auto v, int64_t o) { step(v, begin + o); });
    } else {
      for (int64_t o = begin; o < end; ++o) step(One<A>{}, o);
    }
  }
}

// Channels that do not fill a register are done again with those before them.
template <class T, int K, int S, class V = Vec<Acc<T>>>
void pixels(const DepthwiseConv2dGradWeight& a, const int64_t first, const int64_t end) {
  constexpr int columns = 7;
  constexpr int64_t width = V::width;
  if (end - first < width) {
    if constexpr (width > 8 && sizeof(T) == sizeof(float)) return pixels<T, K, S, Vec<float, 2 * width>>(a, first, end);
    return any_pixels<T>(a, first, end);
  }
  for (int64_t next = first, channels; next < end; next += channels) {
    const int64_t begin = min(next, end - width);
    channels = min((end - begin) / width * width, most_channels<K>);
    Acc<T> sums[K * K * most_channels<K>] = {};
    for (int64_t row = 0; row < a.n * a.out_h; ++row) {
      const T* grad = static_cast<const T*>(a.grad) + row * a.out_w * a.c + begin;
      const T* image = static_cast<const T*>(a.x) + row / a.out_h * a.h * a.w * a.c + begin;
      int64_t j = 0;
      for (; j + columns <= a.out_w; j += columns) {
        const int64_t left = j * S - a.left;
        if (left < 0 || left + (columns - 1) * S + K > a.w)
          tile<V, K, S, columns, true>(a, grad + j * a.c, image, row % a.out_h, j, channels, sums);
        else
          tile<V, K, S, columns, false>(a, grad + j * a.c, image, row % a.out_h, j, channels, sums);
      }
      for (; j < a.out_w; ++j) tile<V, K, S, 1, true>(a, grad + j * a.c, image, row % a.out_h, j, channels, sums);
    }
    T* y = static_cast<T*>(a.grad_weight) + begin * K * K;
    for (int64_t c = 0; c < channels; ++c)
      for (int t = 0; t < K * K; ++t) narrow(sums[t * most_channels<K> + c], y[c * K * K + t]);
  }
}

}  // namespace

void depthwise_conv2d_grad_weight_pixels(const DepthwiseConv2dGradWeight& a, int64_t begin, int64_t end) {
  dispatch(a.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const bool dense =
        a.dilation_h == 1 && a.dilation_w == 1 && a.kh == a.kw && a.stride_h == a.stride_w && a.multiplier == 1;
    if (dense && with_kernel<T>(a.kh, a.stride_h, [&](auto k, auto s) { pixels<T, k, s>(a, begin, end); })) return;
    any_pixels<T>(a, begin, end);
  });
}

}  // namespace crest::CREST_ISA
