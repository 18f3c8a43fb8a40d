// Where channels come last: a register holds neighbouring channels of a pixel. The last one begins early where they do
// not fill it, so as to be whole.
#include "depthwise_lines.h"
#include "transpose.h"

namespace crest::CREST_ISA {
namespace {

constexpr int spread_columns = 8;
// Of x and y, which caches keep too little of: by AVX-512 what is written, which may come from memory.
constexpr int64_t far_bytes = register_bytes == 64 ? 1 << 20 : 8 << 20;

// Some rows of an image, and some of its channels.
template <class T>
struct Image {
  using A = Acc<T>;
  const DepthwiseConv2d& a;
  const A* weight;  // (kh kw, channels)
  const T* x;
  T* y;
  int64_t first, last;  // channels of y
  int64_t pitch;        // numbers from one pixel of y to the next
  bool far;             // x or y comes from beyond the second level of cache, more slowly than it is computed with

  T* pixel(int64_t i, int64_t j) const { return y + (i * a.out_w + j) * pitch - first; }

  template <class V>
  CREST_INLINE V bias(V, int64_t o) const {
    return a.bias ? V::load(static_cast<const T*>(a.bias) + o) : V::zero();
  }
};

// One pixel's channels, by any kernel.
template <class T>
void pixel(const Image<T>& image, int64_t i, int64_t j) {
  using A = Acc<T>;
  const DepthwiseConv2d& a = image.a;
  const Taps rows(i * a.stride_h - a.top, a.kh, a.dilation_h, a.spread_h, a.h);
  const Taps columns(j * a.stride_w - a.left, a.kw, a.dilation_w, a.spread_w, a.w);
  const int64_t fan_in = max(a.in_c / a.out_c, int64_t{1}), fan_out = max(a.out_c / a.in_c, int64_t{1});
  const int64_t channels = max(a.in_c, a.out_c), first = image.first;
  T* y = image.pixel(i, j);
  const auto step = [&](auto v, int64_t o) {
    using V = decltype(v);
    V sum = image.bias(v, o);
    for (int64_t q = 0; q < fan_in; ++q)
      for (int64_t r = rows.first, row = rows.at; r < rows.end; r += rows.step, row += rows.advance)
        for (int64_t s = columns.first, column = columns.at; s < columns.end;
             s += columns.step, column += columns.advance) {
          const V x = V::load(image.x + (row * a.w + column) * a.in_c + o / fan_out * fan_in + q);
          sum = x * V::load(image.weight + (r * a.kw + s) * channels + o * fan_in + q) + sum;
        }
    activate(sum, a.activation).store(y + o);
  };
  if (a.in_c == a.out_c)
    return for_each_overlapping<A>(image.last - first, [&](auto v, int64_t o) { step(v, first + o); });
  for (int64_t o = first; o < image.last; ++o) step(One<A>{}, o);
}

// rows x columns pixels of y at once, so that a register of x, once loaded, meets all of the kernel's taps that see it.
// `edge`: some may lie beyond the sides of the image. Those above and below it are always left out.
template <int K, int S, int rows, int columns, bool edge, class T, class V = Vec<Acc<T>>>
void tile(const Image<T>& image, int64_t i, int64_t j) {
  const DepthwiseConv2d& a = image.a;
  const int64_t c = a.in_c, top = i * S - a.top, left = j * S - a.left;
  if (image.last - image.first < V::width) {
    if constexpr (V::width > 4 && sizeof(T) == sizeof(float))
      return tile<K, S, rows, columns, true, T, Vec<float, 2 * V::width>>(image, i, j);
    for (int t = 0; t < rows * columns; ++t) pixel(image, i + t / columns, j + t % columns);
    return;
  }
  for (int64_t next = image.first; next < image.last; next += V::width) {
    const int64_t channel = min(next, image.last - V::width);
    V weight[rows * K], sum[rows * columns];
    // The processor's own prefetcher follows neither so many streams nor what is written. Measured, it is best to ask
    // by AVX-512 for what the next tile writes, in the order of memory, and otherwise for the rows below.
    if (image.far && register_bytes == 64) {
      const T* y = image.pixel(i, j + columns) + image.first + (next - image.first) * columns;
      unroll<rows * columns>([&](auto t) CREST_INLINE {
        __builtin_prefetch(y + t / columns * a.out_w * image.pitch + t % columns * V::width, 1);
      });
    } else if (image.far) {
      const T* x = image.x + ((top + (rows - 1) * S + K) * a.w + left) * c + channel;
      unroll<rows * S>([&](auto p) CREST_INLINE {
        unroll<columns * S>([&](auto q) CREST_INLINE { __builtin_prefetch(x + (p * a.w + q) * c, 0, 2); });
      });
    }
    const V bias = image.bias(V{}, channel);
    unroll<rows * columns>([&](auto t) CREST_INLINE { sum[t] = bias; });
    unroll<(rows - 1) * S + K>([&](auto p) CREST_INLINE {
      if (top + p < 0 || top + p >= a.h) return;
      const T* x = image.x + ((top + p) * a.w + left) * c + channel;
      unroll<rows * K>([&](auto t) CREST_INLINE {  // not all of the kernel: its registers would be too many
        constexpr int r = p - t / K * S, s = t % K;
        if constexpr (r >= 0 && r < K) weight[t] = V::load(image.weight + (r * K + s) * c + channel);
      });
      unroll<(columns - 1) * S + K>([&](auto q) CREST_INLINE {
        if (edge && (left + q < 0 || left + q >= a.w)) return;
        const V seen = V::load(x + q * c);
        unroll<rows * columns>([&](auto t) CREST_INLINE {
          constexpr int r = p - t / columns * S, s = q - t % columns * S;
          if constexpr (r >= 0 && r < K && s >= 0 && s < K) sum[t] = fma(seen, weight[t / columns * K + s], sum[t]);
        });
      });
    });
    T* y = image.pixel(i, j) + channel;
    unroll<rows * columns>([&](auto t) CREST_INLINE {
      activate(sum[t], a.activation).store(y + (t / columns * a.out_w + t % columns) * image.pitch);
    });
  }
}

template <int K, int S, int rows, class T>
void rows_of(const Image<T>& image, int64_t i) {
  const DepthwiseConv2d& a = image.a;
  constexpr int columns = tile_columns;
  for (int64_t next = 0; next < a.out_w; next += columns) {
    const int64_t j = min(next, a.out_w - columns), left = j * S - a.left;  // the last one goes over some again
    if (left < 0 || left + (columns - 1) * S + K > a.w)
      tile<K, S, rows, columns, true>(image, i, j);
    else
      tile<K, S, rows, columns, false>(image, i, j);
  }
}

template <int K, int S, class T>
void two_rows(const Image<T>& image, int64_t i) {
  if (i + 1 == image.a.out_h) return rows_of<K, S, 1>(image, i);
  if constexpr (K == 3 && register_count > 16) return rows_of<K, S, 2>(image, i);
  rows_of<K, S, 1>(image, i);  // sums and taps of two rows need more registers than there are
  rows_of<K, S, 1>(image, i + 1);
}

// Where x is spread out by 2: of row i, whose first tap that falls on a row of x is `first_row`, the columns from j on.
// So do even taps of even columns, and odd taps of odd ones. `edge`: some columns, or what they see, may not be there.
template <int K, int first_row, bool edge, class T>
void spread_tile(const Image<T>& image, int64_t i, int64_t j) {
  using V = Vec<Acc<T>>;
  constexpr int rows = (K - first_row + 1) / 2, columns = spread_columns;
  const DepthwiseConv2d& a = image.a;
  const int64_t c = a.in_c, top = (i - a.top + first_row) / 2, left = (j - a.left) / 2;
  const auto there = [&](int t) { return !edge || (j + t >= 0 && j + t < a.out_w); };
  if (image.last - image.first < V::width) {
    for (int t = 0; t < columns; ++t)
      if (there(t)) pixel(image, i, j + t);
    return;
  }
  for (int64_t next = image.first; next < image.last; next += V::width) {
    const int64_t channel = min(next, image.last - V::width);
    V weight[rows * K], sum[columns];
    unroll<rows * K>([&](auto t) CREST_INLINE {
      weight[t] = V::load(image.weight + ((first_row + t / K * 2) * K + t % K) * c + channel);
    });
    const V bias = image.bias(V{}, channel);
    unroll<columns>([&](auto t) CREST_INLINE { sum[t] = bias; });
    unroll<rows>([&](auto p) CREST_INLINE {
      if (top + p < 0 || top + p >= a.h) return;
      const T* x = image.x + ((top + p) * a.w + left) * c + channel;
      unroll<(columns + K) / 2>([&](auto q) CREST_INLINE {
        if (edge && (left + q < 0 || left + q >= a.w)) return;
        const V seen = V::load(x + q * c);
        unroll<columns>([&](auto t) CREST_INLINE {
          constexpr int s = 2 * q - t;
          if constexpr (s >= 0 && s < K) sum[t] = fma(seen, weight[p * K + s], sum[t]);
        });
      });
    });
    unroll<columns>([&](auto t) CREST_INLINE {
      if (there(t)) activate(sum[t], a.activation).store(image.pixel(i, j + t) + channel);
    });
  }
}

template <int K, class T>
void spread_row(const Image<T>& image, int64_t i) {
  const DepthwiseConv2d& a = image.a;
  const auto by_parity = [&](auto first_row) {
    for (int64_t j = -(a.left & 1); j < a.out_w; j += spread_columns) {
      const int64_t left = (j - a.left) / 2;
      if (j < 0 || j + spread_columns > a.out_w || left < 0 || left + (spread_columns + K) / 2 > a.w)
        spread_tile<K, first_row, true>(image, i, j);
      else
        spread_tile<K, first_row, false>(image, i, j);
    }
  };
  (i - a.top) & 1 ? by_parity(Index<1>{}) : by_parity(Index<0>{});
}

bool is_dense(const DepthwiseConv2d& a) {
  return a.dilation_h == 1 && a.dilation_w == 1 && a.in_c == a.out_c && a.kh == a.kw && a.stride_h == a.stride_w &&
         a.spread_h == a.spread_w;
}

// Row i and, where the image has it, the next one.
template <class T>
void pair_of_rows(const Image<T>& image, int64_t i) {
  const DepthwiseConv2d& a = image.a;
  const bool dense = is_dense(a);
  const int64_t end = min(i + 2, a.out_h);
  if (dense && a.spread_h == 1 && a.out_w >= tile_columns &&
      with_kernel<T>(a.kh, a.stride_h, [&](auto k, auto s) { two_rows<k, s>(image, i); }))
    return;
  if (dense && a.spread_h == 2 && a.stride_h == 1 && with_kernel<T>(a.kh, 1, [&](auto k, auto) {
        for (int64_t row = i; row < end; ++row) spread_row<k>(image, row);
      }))
    return;
  for (int64_t row = i; row < end; ++row)
    for (int64_t j = 0; j < a.out_w; ++j) pixel(image, row, j);
}

// Rows [begin, end), the first of which is even.
template <class T>
void some_rows(const Image<T>& image, int64_t begin, int64_t end) {
  const DepthwiseConv2d& a = image.a;
  if constexpr (sizeof(T) == sizeof(float)) {
    bool done = false;
    if (is_dense(a) && a.spread_h == 1)
      with_kernel<T>(a.kh, a.stride_h, [&](auto k, auto s) { done = by_lines<k, s>(image, begin, end); });
    if (done) return;
  }
  for (int64_t i = begin; i < end; i += 2) pair_of_rows(image, i);
}

}  // namespace

void depthwise_conv2d_pack(const DepthwiseConv2d& a, void* packed, int64_t begin, int64_t end) {
  dispatch(a.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const T* weight = static_cast<const T*>(a.weight);
    const int64_t taps = a.kh * a.kw, channels = max(a.in_c, a.out_c);
    if constexpr (sizeof(T) == sizeof(float))
      for (; begin + Vec<float>::width <= end; begin += Vec<float>::width)
        turn<Vec<float>>(weight + begin * taps, taps, taps, [&](int64_t t) {
          return static_cast<float*>(packed) + (a.flip ? taps - 1 - t : t) * channels + begin;
        });
    for (int64_t t = 0; t < taps; ++t) {
      const T* from = weight + (a.flip ? taps - 1 - t : t);
      Acc<T>* to = static_cast<Acc<T>*>(packed) + t * channels;
      for (int64_t c = begin; c < end; ++c) to[c] = widen(from[c * taps]);
    }
  });
}

void depthwise_conv2d_pixels(const DepthwiseConv2d& a, const void* packed, int64_t begin, int64_t end) {
  dispatch(a.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const int64_t pairs = (a.out_h + 1) / 2;
    for (int64_t pair = begin; pair < end;) {
      const int64_t n = pair / pairs, first = n * pairs, last = min(end, first + pairs);
      const Image<T> image{
          a,
          static_cast<const Acc<T>*>(packed),
          static_cast<const T*>(a.x) + n * a.h * a.w * a.in_c,
          static_cast<T*>(a.y) + n * a.out_h * a.out_w * a.out_c,
          0,
          a.out_c,
          a.out_c,
          static_cast<int64_t>(sizeof(T)) * a.n * (a.h * a.w * a.in_c + a.out_h * a.out_w * a.out_c) > far_bytes};
      some_rows(image, 2 * (pair - first), min(2 * (last - first), a.out_h));
      pair = last;
    }
  });
}

void depthwise_conv2d_slab(const DepthwiseConv2d& a, const float* packed, int64_t n, int64_t row, int64_t rows,
                           int64_t first, int64_t last, float* slab, int64_t pitch) {
  DepthwiseConv2d part = a;  // whose image begins at `row`
  part.top -= row * a.stride_h;
  part.out_h = rows;
  const float* x = static_cast<const float*>(a.x) + n * a.h * a.w * a.in_c;
  some_rows(Image<float>{part, packed, x, slab, first, last, pitch, false}, 0, rows);
}

}  // namespace crest::CREST_ISA
