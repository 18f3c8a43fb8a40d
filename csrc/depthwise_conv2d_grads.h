#pragma once
// The gradients of depthwise_conv2d one by one, as functions, and what their kernels are called with.
#include "conv_host.h"
#include "depthwise_conv2d_grad_weight.h"

namespace crest {

// grad (n, m, out_h, out_w), x and grad_x (n, c, h, w), weight and grad_weight (m, 1, kh, kw), all of one format.
DepthwiseConv2d grad_x_call(const ConvSizes& s, const Tensor& grad, const Tensor& weight, Tensor& grad_x, bool last,
                            Dtype dtype);
DepthwiseConv2dGradWeight grad_weight_call(const ConvSizes& s, const Tensor& grad, const Tensor& x, Tensor& grad_weight,
                                           bool last, Dtype dtype);

// What is asked of a weight (m, 1, kh, kw).
void check_depthwise_weight(const char* op, const Tensor& weight);

Tensor depthwise_conv2d_grad_x(const Tensor& grad, const Tensor& weight, const Ints& size, const Ints& stride,
                               const Ints& padding, const Ints& dilation);
Tensor depthwise_conv2d_grad_weight(const Tensor& grad, const Tensor& x, const Ints& kernel_size, const Ints& stride,
                                    const Ints& padding, const Ints& dilation);

}  // namespace crest
