#include "stem_conv2d.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "conv_host.h"
#include "cuda_device.h"
#include "inference.h"
#include "scratch.h"

namespace crest {
namespace {

constexpr const char* op = "stem_conv2d";

void run(const StemConv2d& a, const Tensor& y);  // where it is

}  // namespace

Tensor stem_conv2d(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, const Ints& stride,
                   const Ints& padding, const Ints& dilation, const Text& activation, bool channels_last) {
  CREST_CHECK(x.dim() == 4, op, ": x must have 4 dimensions, got ", Shape{x});
  CREST_CHECK(weight.dim() == 4, op, ": weight must have 4 dimensions, got ", Shape{weight});
  const int64_t c = x.size(1), m = weight.size(0), kh = weight.size(2), kw = weight.size(3);
  CREST_CHECK(c > 0, op, ": x must have channels, got ", Shape{x});
  CREST_CHECK(weight.size(1) == c && m > 0 && kh > 0 && kw > 0, op, ": weight must have shape (m, ", c,
              ", kh, kw), got ", Shape{weight});
  if (bias)
    CREST_CHECK(bias->dim() == 1 && bias->size(0) == m, op, ": bias must have shape (", m, ",), got ", Shape{*bias});
  const ConvSizes s = check_conv(op, x.size(2), x.size(3), kh, kw, stride, padding, dilation);
  CREST_CHECK(x.scalar_type() == ScalarType::Float, op, ": x must be float32, got ", Type{x});
  check_same_dtype(op, "weight", weight, "x", x);
  if (bias) check_same_dtype(op, "bias", *bias, "x", x);
  check_same_device(op, "weight", weight, "x", x);
  if (bias) check_same_device(op, "bias", *bias, "x", x);
  const Activation act = check_activation(op, "activation", activation);

  Tensor y = new_in_format(x, {x.size(0), m, s.out_h, s.out_w}, channels_last);
  if (y.numel() == 0) return y;
  const Tensor w = in_format(weight, false);
  std::optional<Tensor> b;
  if (bias) b = bias->is_contiguous() ? *bias : torch::stable::contiguous(*bias);
  run({x.const_data_ptr<float>(),
       w.const_data_ptr<float>(),
       b ? b->const_data_ptr<float>() : nullptr,
       y.mutable_data_ptr<float>(),
       x.size(0),
       c,
       m,
       s.h,
       s.w,
       kh,
       kw,
       s.out_h,
       s.out_w,
       x.stride(0),
       x.stride(1),
       x.stride(2),
       x.stride(3),
       s.stride_h,
       s.stride_w,
       s.top,
       s.left,
       s.dilation_h,
       s.dilation_w,
       channels_last,
       act},
      y);
  return y;
}

namespace {

void on_cpu(const StemConv2d& a) {
  Scratch packed(a.panels() * a.taps() * stem_outputs);
  float* p = packed.data();
  CREST_KERNEL(stem_conv2d_pack)(a, p, 0, a.panels());
  const auto kernel = CREST_KERNEL(stem_conv2d);
  torch::stable::parallel_for(0, a.n * a.out_h, 1 + (1 << 18) / (a.out_w * a.taps() * a.m),
                              [&](int64_t begin, int64_t end) {
                                Scratch window(a.window_numbers() + a.row_numbers());
                                kernel(a, p, window.data(), begin, end);
                              });
}

void run(const StemConv2d& a, [[maybe_unused]] const Tensor& y) {
#ifdef CREST_CUDA
  if (y.is_cuda()) return cuda::stem_conv2d(a, CudaDevice(y).stream());
#endif
  on_cpu(a);
}

STABLE_TORCH_LIBRARY_IMPL(crest, CPU, m) { m.impl(op, TORCH_BOX(&stem_conv2d)); }

#ifdef CREST_CUDA
STABLE_TORCH_LIBRARY_IMPL(crest, CUDA, m) { m.impl(op, TORCH_BOX(&stem_conv2d)); }
#endif

}  // namespace
}  // namespace crest
