#pragma once
// depthwise_conv2d_grad_weight: grad_weight[o, r, s] = sum of grad[n, o, i, j] x[n, o / multiplier, i', j'] over what
// weight[o, r, s] joins: i' = i stride_h - top + r dilation_h, and j' likewise.
#include "dtype.h"
#include "isa.h"

namespace crest {

struct DepthwiseConv2dGradWeight {
  const void* grad;   // (n, c multiplier, out_h, out_w)
  const void* x;      // (n, c, h, w)
  void* grad_weight;  // (c multiplier, kh, kw)
  int64_t n, c, multiplier, h, w, kh, kw, out_h, out_w;
  int64_t stride_h, stride_w, top, left, dilation_h, dilation_w;
  bool channels_last;  // grad and x are (n, h, w, c) in memory
  Dtype dtype;
};

// Channels [begin, end) of grad_weight, from images whose channels do not come last, or do.
CREST_DECLARE_KERNEL(depthwise_conv2d_grad_weight_planes, const DepthwiseConv2dGradWeight&, int64_t begin, int64_t end)
CREST_DECLARE_KERNEL(depthwise_conv2d_grad_weight_pixels, const DepthwiseConv2dGradWeight&, int64_t begin, int64_t end)

namespace cuda {
void depthwise_conv2d_grad_weight(const DepthwiseConv2dGradWeight&, void* stream);
}

}  // namespace crest
