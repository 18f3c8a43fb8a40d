#include "separable_conv2d.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "conv_host.h"
#include "cuda_device.h"
#include "inference.h"
#include "scratch.h"

namespace crest {
namespace {

constexpr const char* op = "separable_conv2d";

void check_float(const char* arg, const Tensor& t) {
  CREST_CHECK(t.scalar_type() == ScalarType::Float, op, ": ", arg, " must be float32, got ", Type{t});
}

void check_bias(const char* arg, const std::optional<Tensor>& bias, int64_t size) {
  if (bias)
    CREST_CHECK(bias->dim() == 1 && bias->size(0) == size, op, ": ", arg, " must have shape (", size, ",), got ",
                Shape{*bias});
}

void run(const SeparableConv2d& a, const Tensor& y);  // where it is

}  // namespace

Tensor separable_conv2d(const Tensor& x, const Tensor& depthwise, const Tensor& pointwise, int64_t m,
                        const std::optional<Tensor>& depthwise_bias, const std::optional<Tensor>& bias,
                        const Ints& stride, const Ints& padding, const Ints& dilation, const Text& depthwise_activation,
                        const Text& activation) {
  CREST_CHECK(x.dim() == 4, op, ": x must have 4 dimensions, got ", Shape{x});
  CREST_CHECK(depthwise.dim() == 3, op, ": depthwise must have 3 dimensions, got ", Shape{depthwise});
  CREST_CHECK(pointwise.dim() == 3, op, ": pointwise must have 3 dimensions, got ", Shape{pointwise});
  const int64_t n = x.size(0), c = x.size(1), kh = depthwise.size(0), kw = depthwise.size(1);
  CREST_CHECK(c > 0, op, ": x must have channels, got ", Shape{x});
  CREST_CHECK(kh > 0 && kw > 0 && depthwise.size(2) == c, op, ": depthwise must have shape (kh, kw, ", c, "), got ",
              Shape{depthwise});
  CREST_CHECK(m > 0, op, ": out_channels must be at least 1, got ", m);
  const int64_t panels = (m + panel_outputs - 1) / panel_outputs;
  CREST_CHECK(pointwise.size(0) == panels && pointwise.size(1) == c && pointwise.size(2) == panel_outputs, op,
              ": pointwise must have shape (", panels, ", ", c, ", ", panel_outputs, "), got ", Shape{pointwise});
  check_bias("depthwise_bias", depthwise_bias, c);
  check_bias("bias", bias, m);
  const ConvSizes s = check_conv(op, x.size(2), x.size(3), kh, kw, stride, padding, dilation);
  check_float("x", x);
  const auto check_like_x = [&](const char* arg, const Tensor& t) {
    check_same_dtype(op, arg, t, "x", x);
    check_same_device(op, arg, t, "x", x);
  };
  check_like_x("depthwise", depthwise);
  check_like_x("pointwise", pointwise);
  if (depthwise_bias) check_like_x("depthwise_bias", *depthwise_bias);
  if (bias) check_like_x("bias", *bias);
  const Activation inner = check_activation(op, "depthwise_activation", depthwise_activation);
  const Activation outer = check_activation(op, "activation", activation);

  Tensor y = new_in_format(x, {n, m, s.out_h, s.out_w}, true);
  if (y.numel() == 0) return y;
  const auto in_order = [](const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); };
  const Tensor in = in_format(x, true), d = in_order(depthwise), p = in_order(pointwise);
  std::optional<Tensor> db, b;
  if (depthwise_bias) db = in_order(*depthwise_bias);
  if (bias) b = in_order(*bias);
  run({{in.const_data_ptr(),
        d.const_data_ptr(),
        db ? db->const_data_ptr() : nullptr,
        nullptr,
        n,
        c,
        c,
        s.h,
        s.w,
        s.kh,
        s.kw,
        s.out_h,
        s.out_w,
        s.stride_h,
        s.stride_w,
        1,
        1,
        s.top,
        s.left,
        s.dilation_h,
        s.dilation_w,
        false,
        true,
        inner,
        Dtype::float32},
       p.const_data_ptr<float>(),
       b ? b->const_data_ptr<float>() : nullptr,
       y.mutable_data_ptr<float>(),
       m,
       outer,
       0},
      y);
  return y;
}

namespace {

void on_cpu(SeparableConv2d a, const Tensor&) {
  const DepthwiseConv2d& d = a.depthwise;
  constexpr int64_t cached = 1 << 16;  // numbers of a tile: what the second level of cache has room for
  const int64_t rows = d.n * d.out_h, row = d.in_c * d.out_w, fit = std::max(cached / row, int64_t{1});
  const int64_t tiles = (rows + fit - 1) / fit;  // of about the same height, which is even
  a.rows = std::min(((rows + tiles - 1) / tiles + 1) / 2 * 2, rows);
  const auto kernel = CREST_KERNEL(separable_conv2d);
  torch::stable::parallel_for(0, a.tiles() * a.panels(), 1 + (1 << 18) / (a.rows * row),
                              [&](int64_t begin, int64_t end) {
                                Scratch tile(a.tile_numbers());
                                kernel(a, tile.data(), begin, end);
                              });
}

void run(const SeparableConv2d& a, const Tensor& y) {
#ifdef CREST_CUDA
  if (y.is_cuda()) return cuda::separable_conv2d(a, CudaDevice(y).stream());
#endif
  on_cpu(a, y);
}

STABLE_TORCH_LIBRARY_IMPL(crest, CPU, m) { m.impl(op, TORCH_BOX(&separable_conv2d)); }

#ifdef CREST_CUDA
STABLE_TORCH_LIBRARY_IMPL(crest, CUDA, m) { m.impl(op, TORCH_BOX(&separable_conv2d)); }
#endif

}  // namespace
}  // namespace crest
