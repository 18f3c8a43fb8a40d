#pragma once
// depthwise_conv2d: y = act(x * weight + bias), a convolution in which a channel of y sees one channel of x.
// depthwise_conv2d_grad_x is the same walk the other way round: weight flipped, and x spread out by the stride.
#include "activation.h"
#include "dtype.h"
#include "isa.h"

namespace crest {

// y[i] = act(bias + sum over r of weight[r] x[(i stride - top + r dilation) / spread]), and the same along the width;
// x is 0 where that is outside, or where spread does not divide it. Channels: one of in_c and out_c is a multiple of
// the other; a channel of the fewer goes with as many neighbours of the more, and weight has one for each of the more.
struct DepthwiseConv2d {
  const void* x;       // (n, in_c, h, w)
  const void* weight;  // (max(in_c, out_c), kh, kw)
  const void* bias;    // (out_c,), or nullptr
  void* y;             // (n, out_c, out_h, out_w)
  int64_t n, in_c, out_c, h, w, kh, kw, out_h, out_w;
  int64_t stride_h, stride_w, spread_h, spread_w, top, left, dilation_h, dilation_w;
  bool flip;           // weight is read from its end
  bool channels_last;  // x and y are (n, h, w, c) in memory
  Activation activation;
  Dtype dtype;
};

// Planes [begin, end) of the n out_c of y, where channels do not come last.
CREST_DECLARE_KERNEL(depthwise_conv2d_planes, const DepthwiseConv2d&, int64_t begin, int64_t end)
// Channels [begin, end) of weight as (kh kw, channels), not flipped any more, in the type that sums are kept in.
CREST_DECLARE_KERNEL(depthwise_conv2d_pack, const DepthwiseConv2d&, void* packed, int64_t begin, int64_t end)
// Pairs [begin, end) of rows of y, ceil(out_h / 2) in each of n images, where channels come last.
CREST_DECLARE_KERNEL(depthwise_conv2d_pixels, const DepthwiseConv2d&, const void* packed, int64_t begin, int64_t end)
// Channels [first, last) of rows [row, row + rows) of one image of y, float32 and in_c = out_c, to (rows out_w, pitch).
CREST_DECLARE_KERNEL(depthwise_conv2d_slab, const DepthwiseConv2d&, const float* packed, int64_t image, int64_t row,
                     int64_t rows, int64_t first, int64_t last, float* slab, int64_t pitch)

namespace cuda {
void depthwise_conv2d(const DepthwiseConv2d&, void* stream);
}

}  // namespace crest
