// separable_conv2d: a depthwise convolution of some rows, and its product with the pointwise weight.
#include "../separable_conv2d.h"

#include "outputs.h"

namespace crest::CREST_ISA {
namespace {

using V = Vec<float>;

// Of the tile, pixels from x on, with `registers` registers of outputs, of which y has `count` numbers. Meanwhile the
// second level of cache gets the lines from `next` on, one for each channel: large weights come from further away. Few
// registers do not hide that: the processor's own prefetcher has to do.
template <int pixels, int registers>
inline void product(const SeparableConv2d& a, const float* x, int64_t block, const float* weight, const float* next,
                    const V* bias, float* y, int count) {
  V sum[pixels * registers];
  unroll<pixels * registers>([&](auto i) CREST_INLINE { sum[i] = bias[i % registers]; });
  const auto meet = [&](const float* at, const float* weight) CREST_INLINE {
    V w[registers];
    unroll<registers>([&](auto v) CREST_INLINE { w[v] = V::load(weight + v * V::width); });
    unroll<pixels>([&](auto p) CREST_INLINE {
      const V seen = V::all(at[p * block_channels]);
      unroll<registers>([&](auto v) CREST_INLINE { sum[p * registers + v] = fma(seen, w[v], sum[p * registers + v]); });
    });
  };
  for (int64_t c = 0; c < a.depthwise.in_c; c += block_channels, x += block) {
    const int64_t channels = min(a.depthwise.in_c - c, block_channels);
    int64_t i = 0;
    for (; i + channels_at_once <= channels; i += channels_at_once, weight += channels_at_once * panel_outputs) {
      if constexpr (channels_at_once == 1) __builtin_prefetch(next + (c + i) * panel_outputs / 2, 0, 2);
      unroll<channels_at_once>([&](auto u) CREST_INLINE { meet(x + i + u, weight + u * panel_outputs); });
    }
    for (; i < channels; ++i, weight += panel_outputs) meet(x + i, weight);
  }
  store_outputs<pixels, registers>(sum, a.activation, y, a.m, count);
}

// All pixels of the tile: as many at a time as can be, then fewer.
template <int registers, int most = most_pixels>
inline void products(const SeparableConv2d& a, const float* x, int64_t pixels, int64_t block, const float* weight,
                     const V* bias, float* y, int count) {
  int64_t p = 0;
  const int64_t half = a.depthwise.in_c * panel_outputs / 2;
  for (; p + most <= pixels; p += most) {
    const float* next = weight + (2 + p / most % 2) * half;  // of the next panel, this half or that
    product<most, registers>(a, x + p * block_channels, block, weight, next, bias, y + p * a.m, count);
  }
  if constexpr (most > 1)
    if (p < pixels)
      products<registers, most / 2>(a, x + p * block_channels, pixels - p, block, weight, bias, y + p * a.m, count);
}

// Outputs of one panel, for all pixels of the tile.
inline void multiply(const SeparableConv2d& a, const float* tile, int64_t pixels, int64_t panel, float* y) {
  const int64_t first = panel * panel_outputs, outputs = min(a.m - first, panel_outputs);
  const float* weight = a.weight + first * a.depthwise.in_c;
  for_each_pair(outputs, a.bias ? a.bias + first : nullptr, [&](auto registers, int64_t o, int count, const V* bias) {
    products<registers>(a, tile, pixels, pixels * block_channels, weight + o, bias, y + first + o, count);
  });
}

// Rows [begin, end) of all images, by the depthwise convolution.
inline void fill(const DepthwiseConv2d& a, int64_t begin, int64_t end, float* tile) {
  const int64_t block = (end - begin) * a.out_w * block_channels;
  for (int64_t c = 0; c < a.in_c; c += block_channels, tile += block)
    for (int64_t row = begin; row < end;) {
      const int64_t i = row % a.out_h, rows = min(a.out_h - i, end - row);
      depthwise_conv2d_slab(a, static_cast<const float*>(a.weight), row / a.out_h, i, rows, c,
                            min(c + block_channels, a.in_c), tile + (row - begin) * a.out_w * block_channels,
                            block_channels);
      row += rows;
    }
}

}  // namespace

void separable_conv2d(const SeparableConv2d& a, float* tile, int64_t begin, int64_t end) {
  const DepthwiseConv2d& d = a.depthwise;
  while (begin < end) {
    const int64_t at = begin / a.panels(), row = at * a.rows, last = min(row + a.rows, d.n * d.out_h);
    fill(d, row, last, tile);
    for (; begin < min(end, (at + 1) * a.panels()); ++begin)
      multiply(a, tile, (last - row) * d.out_w, begin % a.panels(), a.y + row * d.out_w * a.m);
  }
}

}  // namespace crest::CREST_ISA
