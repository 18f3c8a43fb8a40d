// Where channels do not come last: a register holds neighbours of a row.
#include "../depthwise_conv2d.h"
#include "activation.h"
#include "depthwise_band.h"
#include "depthwise_pairs.h"
#include "depthwise_rows.h"
#include "depthwise_spread.h"
#include "depthwise_spread_rows.h"
#include "depthwise_taps.h"
#include "depthwise_turned.h"

namespace crest::CREST_ISA {
namespace {

template <class T>
struct Plane {
  using A = Acc<T>;
  const DepthwiseConv2d& a;
  const T* x;  // of the first channel that this one sees
  const T* weight;
  T* y;
  A bias;

  Plane(const DepthwiseConv2d& args, int64_t plane) : a(args) {
    const int64_t o = plane % a.out_c;
    int64_t seen = plane, fan_in = 1;
    if (a.in_c != a.out_c) {  // or small planes would wait for the divisions
      fan_in = max(a.in_c / a.out_c, int64_t{1});
      seen = plane / a.out_c * a.in_c + o / max(a.out_c / a.in_c, int64_t{1}) * fan_in;
    }
    x = static_cast<const T*>(a.x) + seen * a.h * a.w;
    weight = static_cast<const T*>(a.weight) + o * fan_in * a.kh * a.kw;
    y = static_cast<T*>(a.y) + plane * a.out_h * a.out_w;
    bias = a.bias ? widen(static_cast<const T*>(a.bias)[o]) : 0;
  }

  // Of a kernel of so many taps.
  CREST_INLINE A tap(int t, int taps) const { return widen(weight[a.flip ? taps - 1 - t : t]); }
};

// `rows` rows of the result at once, so that a row of x, once loaded, meets all rows of the kernel.
template <int K, int S, int rows, class T, class Source>
CREST_INLINE inline void tile(const Plane<T>& plane, const Source& source, const Vec<Acc<T>>* weight, T* y, int count) {
  using V = Vec<Acc<T>>;
  const int64_t out_w = plane.a.out_w;
  const Activation activation = plane.a.activation;
  V sum[rows];
  unroll<rows>([&](auto t) CREST_INLINE { sum[t] = V::all(plane.bias); });
  unroll<(rows - 1) * S + K>([&](auto row) CREST_INLINE {
    V x[K];
    if (!source.template taps<rows>(row, x)) return;
    unroll<K>([&](auto s) CREST_INLINE {
      unroll<rows>([&](auto t) CREST_INLINE {
        constexpr int r = row - t * S;
        if constexpr (r >= 0 && r < K) sum[t] = fma(x[s], weight[r * K + s], sum[t]);
      });
    });
  });
  unroll<rows>([&](auto t)
                   CREST_INLINE { store_first(activate(source.in_order(sum[t]), activation), y + t * out_w, count); });
}

template <class T, int K, int S>
inline void tiles(const Plane<T>& plane, const Band<Acc<T>, K, S>& band, const Vec<Acc<T>>* weight, int64_t rows,
                  int64_t columns, T* y) {
  for_each_tile<Vec<Acc<T>>::width, tile_rows, true>(0, rows, columns, [&](auto most, int64_t p, int64_t j, int count) {
    tile<K, S, most>(plane, band.from(p, j), weight, y + p * plane.a.out_w + j, count);
  });
}

// Small planes, by Pairs.
template <int K, class Pairs>
void paired_planes(const DepthwiseConv2d& a, const Pairs& pairs, int64_t begin, int64_t end) {
  using V = Vec<float>;
  const Activation activation = a.activation;
  for (int64_t o = begin; o < end; ++o) {
    const Plane<float> plane(a, o);
    V weight[K * K], sum[Pairs::pairs];
    unroll<K * K>([&](auto t) CREST_INLINE { weight[t] = V::all(plane.tap(t, K * K)); });
    for (V& v : sum) v = V::all(plane.bias);
    pairs.convolve(plane.x, weight, sum);
    unroll<Pairs::pairs>([&](auto t) CREST_INLINE { pairs.store(activate(sum[t], activation), plane.y, t); });
  }
}

// Floats need no band, unless too many rows are missing above or below. Returns the first plane that is left to do.
template <int K, int S>
int64_t float_planes(const DepthwiseConv2d& a, int64_t begin, int64_t end) {
  using V = Vec<float>;
  if (a.in_c == a.out_c && a.spread_h == 1 &&
      with_pairs<K, S>(a.h, a.w, a.out_h, a.out_w, a.top, a.left,
                       [&](const auto& pairs) { paired_planes<K>(a, pairs, begin, end); }))
    return end;
  if constexpr (S == 1)
    if (a.spread_h == 2 && with_spread_rows<K>(a.h, a.w, a.out_h, a.out_w, a.top, a.left, [&](auto& rows) {
          for (int64_t o = begin; o < end; ++o) {
            const Plane<float> plane(a, o);
            rows(plane.x, [&](int t) { return plane.tap(t, K * K); }, V::all(plane.bias), a.activation, plane.y);
          }
        }))
      return end;
  while (a.in_c == a.out_c && a.spread_h == 1 && begin < end) {
    const int64_t last = min(end, (begin / a.out_c + 1) * a.out_c);  // of the image
    if (last - begin < V::width || !turned_planes<K, S>(a, begin, last)) break;
    begin = last;
  }
  if (a.spread_h == 1 && !few_missing<K, S>(a.h, a.out_h, a.top)) return begin;
  for (int64_t o = begin; o < end; ++o) {
    const Plane<float> plane(a, o);
    V weight[K * K];
    unroll<K * K>([&](auto t) CREST_INLINE { weight[t] = V::all(plane.tap(t, K * K)); });
    if constexpr (S == 1)
      if (a.spread_h == 2) {
        const SpreadPlane spread{plane.x, a.h, a.w, plane.y, a.out_h, a.out_w, V::all(plane.bias), a.activation};
        spread_plane<K>(spread, weight, a.top, a.left);
        continue;
      }
    const auto at = [&](auto most, int64_t i, int64_t j, int count) CREST_INLINE {
      const int64_t row = i * S - a.top, column = j * S - a.left;
      float* y = plane.y + i * a.out_w + j;
      fetch_rows<most * S, S, false>(plane.x + ((i + most) * S + 1) * a.w + j * S, a.w);
      fetch_rows<most, 1, true>(y + most * a.out_w, a.out_w);
      if (column < 0 || column + Rows<K, S, true>::reach > a.w)
        tile<K, S, most>(plane, Rows<K, S, true>(plane.x, a.h, a.w, row, column), weight, y, count);
      else
        tile<K, S, most>(plane, Rows<K, S, false>(plane.x, a.h, a.w, row, column), weight, y, count);
    };
    for_each_tile<V::width, tile_rows, true>(0, a.out_h, a.out_w, at);
  }
  return end;
}

// Any kernel: one tap after the other, over a part of a row.
template <class T>
void any_planes(const DepthwiseConv2d& a, int64_t begin, int64_t end) {
  using A = Acc<T>;
  constexpr int64_t most = 64;
  const int64_t fan_in = max(a.in_c / a.out_c, int64_t{1}), taps = a.kh * a.kw;
  A sum[most];
  for (int64_t o = begin; o < end; ++o) {
    const Plane<T> plane(a, o);
    for (int64_t i = 0; i < a.out_h; ++i) {
      const Taps rows(i * a.stride_h - a.top, a.kh, a.dilation_h, a.spread_h, a.h);
      for (int64_t j = 0; j < a.out_w; j += most) {
        const int64_t count = min(a.out_w - j, most);
        for (int64_t l = 0; l < count; ++l) sum[l] = plane.bias;
        for (int64_t q = 0; q < fan_in; ++q)
          for (int64_t r = rows.first, row = rows.at; r < rows.end; r += rows.step, row += rows.advance)
            for (int64_t s = 0; s < a.kw; ++s) {
              const int64_t t = r * a.kw + s, first = j * a.stride_w - a.left + s * a.dilation_w;
              const A weight = widen(plane.weight[q * taps + (a.flip ? taps - 1 - t : t)]);
              // Along the row it is the result that takes steps: column l sees element (first + l stride) / spread.
              const Taps columns(first, count, a.stride_w, a.spread_w, a.w);
              const T* x = plane.x + (q * a.h + row) * a.w + columns.at;
              if (columns.step == 1 && columns.advance == 1) {
                x -= columns.first;
                for_each_register<A>(columns.first, columns.end, [&](auto v, int64_t l) {
                  using V = decltype(v);
                  (V::load(x + l) * V::all(weight) + V::load(sum + l)).store(sum + l);
                });
              } else {
                for (int64_t l = columns.first; l < columns.end; l += columns.step, x += columns.advance)
                  sum[l] += weight * widen(*x);
              }
            }
        T* y = plane.y + i * a.out_w + j;
        for_each_register<A>(
            0, count, [&](auto v, int64_t l) { activate(decltype(v)::load(sum + l), a.activation).store(y + l); });
      }
    }
  }
}

template <class T, int K, int S>
void planes(const DepthwiseConv2d& a, int64_t begin, int64_t end) {
  if constexpr (sizeof(T) == sizeof(float)) {
    if (S == 2 || (a.spread_h == a.spread_w && a.spread_h <= 2)) begin = float_planes<K, S>(a, begin, end);
    if constexpr (S == 2) return any_planes<T>(a, begin, end);
  }
  using Part = Band<Acc<T>, K, S>;
  // Of small planes the next one is filled before this one is computed: what was just stored is slow to load.
  Part bands[2];
  const bool small = a.out_h <= Part::most_rows && a.out_w <= Part::most_columns;
  const auto fill = [&](Part& band, const Plane<T>& plane, int64_t i, int64_t rows, int64_t j, int64_t columns,
                        bool again) {
    band.fill(plane.x, {a.h, a.spread_h}, {a.w, a.spread_w}, a.top, a.left, i, rows, j, columns, again);
  };
  if (small && begin < end) fill(bands[begin % 2], Plane<T>(a, begin), 0, a.out_h, 0, a.out_w, false);
  for (int64_t o = begin; o < end; ++o) {
    const Plane<T> plane(a, o);
    Vec<Acc<T>> weight[K * K];
    for (int t = 0; t < K * K; ++t) weight[t] = Vec<Acc<T>>::all(plane.tap(t, K * K));
    if (small) {
      if (o + 1 < end) fill(bands[(o + 1) % 2], Plane<T>(a, o + 1), 0, a.out_h, 0, a.out_w, o > begin);
      tiles<T, K, S>(plane, bands[o % 2], weight, a.out_h, a.out_w, plane.y);
      continue;
    }
    for (int64_t j = 0; j < a.out_w; j += Part::most_columns)
      for (int64_t i = 0; i < a.out_h; i += Part::most_rows) {
        const int64_t rows = min(a.out_h - i, Part::most_rows), columns = min(a.out_w - j, Part::most_columns);
        fill(bands[0], plane, i, rows, j, columns, false);
        tiles<T, K, S>(plane, bands[0], weight, rows, columns, plane.y + i * a.out_w + j);
      }
  }
}

}  // namespace

void depthwise_conv2d_planes(const DepthwiseConv2d& a, int64_t begin, int64_t end) {
  dispatch(a.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const bool dense = a.dilation_h == 1 && a.dilation_w == 1 && a.in_c <= a.out_c && a.kh == a.kw;
    const bool even = a.stride_h == a.stride_w && (a.stride_h == 1 || (a.spread_h == 1 && a.spread_w == 1));
    if (dense && even && with_kernel<T>(a.kh, a.stride_h, [&](auto k, auto s) { planes<T, k, s>(a, begin, end); }))
      return;
    any_planes<T>(a, begin, end);
  });
}

}  // namespace crest::CREST_ISA
