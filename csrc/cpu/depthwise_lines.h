#pragma once
// Where channels come last and are many, pixels lie so far apart that a few of them fill their places in the first
// level of cache: what a tile reads is gone before its other channels, or the next row, read it. So rows of x are
// copied as far as one cache line of channels goes, with zeros around them: there pixels are neighbours, at a distance
// that the compiler knows, and no tile has to look for the sides of the image.
#include "../depthwise_conv2d.h"
#include "activation.h"
#include "depthwise_taps.h"
#include "unroll.h"

namespace crest::CREST_ISA {

constexpr int tile_columns = 7;             // of pixels, where nothing is copied
constexpr int64_t copied_bytes = 20 << 10;  // of x, which the first level of cache keeps
constexpr int64_t least_channels = 128;     // from pixel to pixel, from which on copying pays
constexpr int64_t least_rows = 5;           // of y from one copy, for which it pays
// Rows of y for which it pays, if those above do. A register of a whole line uses up what a tile reads, so that only
// what is too narrow for tiles of pixels is copied.
constexpr int64_t widest_copied = register_bytes == 64 ? tile_columns - 1 : copied_bytes;

// Rows of y, whose pixels are `pitch` numbers apart, from rows of x, whose pixels are `line` channels each, as are
// those of weight (K K), and bias.
template <int K, int S, int line, int columns>
void line_rows(const DepthwiseConv2d& a, const float* x, int64_t row, const float* weight, const float* bias,
               int64_t rows, float* y, int64_t pitch) {
  using V = Vec<float>;
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t next = 0; next < a.out_w; next += columns) {
      const int64_t j = min(next, a.out_w - columns);  // the last one goes over some again
      for (int h = 0; h < line; h += V::width) {
        V sum[columns];
        unroll<columns>([&](auto t) CREST_INLINE { sum[t] = V::load(bias + h); });
        unroll<K>([&](auto p) CREST_INLINE {
          V w[K];
          unroll<K>([&](auto s) CREST_INLINE { w[s] = V::load(weight + (p * K + s) * line + h); });
          const float* from = x + (i * S + p) * row + j * S * line + h;
          unroll<(columns - 1) * S + K>([&](auto q) CREST_INLINE {
            const V seen = V::load(from + q * line);
            unroll<columns>([&](auto t) CREST_INLINE {
              constexpr int s = q - t * S;
              if constexpr (s >= 0 && s < K) sum[t] = fma(seen, w[s], sum[t]);
            });
          });
        });
        float* to = y + (i * a.out_w + j) * pitch + h;
        unroll<columns>([&](auto t) CREST_INLINE { activate(sum[t], a.activation).store(to + t * pitch); });
      }
    }
}

constexpr int64_t least_columns = 4;

// line_rows by tiles of so many columns that little of a row of y, of least_columns or more, is computed twice.
template <int K, int S, int line>
inline auto line_rows_for(int64_t out_w) {
  const auto computed = [&](int64_t columns) { return (out_w + columns - 1) / columns * columns; };
  int64_t best = 8;
  for (int64_t columns : {7, 5, 4})
    if (best > out_w || computed(columns) < computed(best)) best = columns;
  return best == 8   ? line_rows<K, S, line, 8>
         : best == 7 ? line_rows<K, S, line, 7>
         : best == 5 ? line_rows<K, S, line, 5>
                     : line_rows<K, S, line, 4>;
}

// Rows [begin, end) of an image of y; false if another way is faster.
template <int K, int S, class Image>
bool by_lines(const Image& image, int64_t begin, int64_t end) {
  const DepthwiseConv2d& a = image.a;
  constexpr int line = 64 / sizeof(float);
  const int64_t width = (a.out_w - 1) * S + K, row = width * line;
  const int64_t height = copied_bytes / static_cast<int64_t>(sizeof(float)) / row, most = (height - K) / S + 1;
  if (a.in_c < least_channels || image.last - image.first < line || a.out_w < least_columns ||
      a.out_w > widest_copied || height < K || most < min(least_rows, a.out_h))
    return false;
  const auto compute = line_rows_for<K, S, line>(a.out_w);
  alignas(64) float copy[copied_bytes / sizeof(float)], weight[K * K * line], bias[line] = {};
  const int64_t left = max(int64_t{0}, a.left), right = min(width, a.w + a.left);
  const int64_t c = a.in_c, w = a.w;  // not read again for each pixel, as if the copy could change them
  const float* x = image.x - a.left * c;
  for (int64_t i = begin; i < end; i += most) {
    const int64_t rows = min(most, end - i), filled = (rows - 1) * S + K, top = i * S - a.top;
    __builtin_memset(copy, 0, static_cast<size_t>(filled * row) * sizeof(float));
    for (int64_t next = image.first; next < image.last; next += line) {
      const int64_t channel = min(next, image.last - line);  // the last ones go over some again
      for (int64_t p = max(int64_t{0}, -top); p < min(filled, a.h - top); ++p)
        for (int64_t q = left; q < right; ++q)
          std::memcpy(copy + p * row + q * line, x + ((top + p) * w + q) * c + channel, sizeof bias);
      for (int64_t t = 0; t < K * K; ++t)
        std::memcpy(weight + t * line, image.weight + t * a.in_c + channel, sizeof bias);
      if (a.bias) std::memcpy(bias, static_cast<const float*>(a.bias) + channel, sizeof bias);
      compute(a, copy, row, weight, bias, rows, image.pixel(i, 0) + channel, image.pitch);
    }
  }
  return true;
}

}  // namespace crest::CREST_ISA
