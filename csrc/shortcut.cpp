// nn.Shortcut: every so many rows and columns of x (n, c, h, w), between channels of zeros.
#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "aten.h"
#include "conv_host.h"
#include "inference.h"
#include "sparse_conv2d.h"

namespace crest {
namespace {

// As planes of x for a convolution of 1x1 with that stride: these are what it looks at, and nothing more.
void copy_on_cpu(const Tensor& x, const Ints& stride, const Tensor& y, int64_t first) {
  SparseConv2d a{};
  a.n = a.m = a.kh = a.kw = a.groups = 1;
  a.c = x.size(1), a.h = x.size(2), a.w = x.size(3), a.oh = y.size(2), a.ow = y.size(3);
  for (size_t i = 0; i < 2; ++i) a.stride[i] = stride[i], a.dilation[i] = 1;
  ConvPlanes p;
  CREST_KERNEL(sparse_conv2d_plan)(a, p);
  p.x_plane = a.oh * a.ow;
  const int64_t channels = y.size(1), behind = channels - first - a.c;
  const float* from = x.const_data_ptr<float>();
  float* to = y.mutable_data_ptr<float>();
  for (int64_t i = 0; i < x.size(0); ++i, from += a.c * a.h * a.w) {
    to = std::fill_n(to, first * p.x_plane, 0.0f);
    a.x = from;
    CREST_KERNEL(sparse_conv2d_pack)(a, p, to, nullptr, 0, a.c);
    to = std::fill_n(to + a.c * p.x_plane, behind * p.x_plane, 0.0f);
  }
}

}  // namespace

Tensor shortcut(const Tensor& x, const Ints& stride, const Ints& channels) {
  CREST_CHECK(x.dim() == 4, "shortcut: x must have 4 dimensions, got ", Shape{x});
  check_pair("shortcut", "stride", stride, 1);
  check_pair("shortcut", "channels", channels, 0);
  const int64_t h = (x.size(2) + stride[0] - 1) / stride[0], w = (x.size(3) + stride[1] - 1) / stride[1];
  Tensor y = aten::empty(x, {x.size(0), channels[0] + x.size(1) + channels[1], h, w});
  if (y.numel() == 0) return y;
  if (!x.is_cuda() && x.scalar_type() == ScalarType::Float && x.is_contiguous() && x.numel()) {
    copy_on_cpu(x, stride, y, channels[0]);
    return y;
  }
  torch::stable::zero_(y);
  Tensor middle = torch::stable::narrow(y, 1, channels[0], x.size(1));
  torch::stable::copy_(middle, aten::every(aten::every(x, 2, stride[0]), 3, stride[1]));
  return y;
}

}  // namespace crest
