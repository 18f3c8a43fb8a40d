#pragma once
// separable_conv2d: y = act2(act1(x * depthwise + bias1) pointwise^T + bias2), tile by tile: what the depthwise
// convolution gives for a few rows of the image stays in cache, and is multiplied by the pointwise weight there.
//
// The packed weights:
//
//   depthwise  (kh, kw, c)
//   pointwise  (ceil(m / 32), c, 32)  panels of 32 outputs, those of a channel side by side; the last filled with zeros
#include "depthwise_conv2d.h"

namespace crest {

constexpr int64_t panel_outputs = 32;
constexpr int64_t block_channels = 64;  // of a tile: (ceil(c / 64), pixels, 64), so that distances are known in advance

struct SeparableConv2d {
  DepthwiseConv2d depthwise;  // from x, channels last; its y is the tile
  const float* weight;        // (ceil(m / 32), c, 32)
  const float* bias;          // (m,), or nullptr
  float* y;                   // (n, out_h, out_w, m)
  int64_t m;
  Activation activation;
  int64_t rows;  // of a tile, among the n out_h of all images

  int64_t panels() const { return (m + panel_outputs - 1) / panel_outputs; }
  int64_t tiles() const { return (depthwise.n * depthwise.out_h + rows - 1) / rows; }
  int64_t tile_numbers() const {  // a thread's
    return (depthwise.in_c + block_channels - 1) / block_channels * block_channels * rows * depthwise.out_w;
  }
};

// Shares [begin, end) of tiles * panels. `tile` has room for tile_numbers().
CREST_DECLARE_KERNEL(separable_conv2d, const SeparableConv2d&, float* tile, int64_t begin, int64_t end)

namespace cuda {
void separable_conv2d(const SeparableConv2d&, void* stream);
}

}  // namespace crest
