#include "depthwise_conv2d.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "cuda_device.h"
#include "depthwise_conv2d_grads.h"
#include "inference.h"
#include "scratch.h"

namespace crest {
namespace {

constexpr const char* op = "depthwise_conv2d";
constexpr const char* op_grad_x = "depthwise_conv2d_grad_x";

void run(const DepthwiseConv2d& a, const Tensor& y);  // where it is

}  // namespace

void check_depthwise_weight(const char* op, const Tensor& weight) {
  CREST_CHECK(weight.dim() == 4, op, ": weight must have 4 dimensions, got ", Shape{weight});
  CREST_CHECK(weight.size(1) == 1, op, ": weight must have shape (m, 1, kh, kw), got ", Shape{weight});
  CREST_CHECK(weight.size(2) > 0 && weight.size(3) > 0, op, ": weight must not be empty, got ", Shape{weight});
}

Tensor depthwise_conv2d(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, const Ints& stride,
                        const Ints& padding, const Ints& dilation, const Text& activation) {
  CREST_CHECK(x.dim() == 4, op, ": x must have 4 dimensions, got ", Shape{x});
  check_depthwise_weight(op, weight);
  const int64_t n = x.size(0), c = x.size(1), m = weight.size(0);
  CREST_CHECK(c > 0, op, ": x must have channels, got ", Shape{x});
  CREST_CHECK(m > 0 && m % c == 0, op, ": weight must have a multiple of ", c, " channels, those of x, got ",
              Shape{weight});
  if (bias)
    CREST_CHECK(bias->dim() == 1 && bias->size(0) == m, op, ": bias must have shape (", m, ",), got ", Shape{*bias});
  const ConvSizes s = check_conv(op, x.size(2), x.size(3), weight.size(2), weight.size(3), stride, padding, dilation);
  const Dtype dtype = check_floating(op, "x", x);
  check_same_dtype(op, "weight", weight, "x", x);
  if (bias) check_same_dtype(op, "bias", *bias, "x", x);
  check_same_device(op, "weight", weight, "x", x);
  if (bias) check_same_device(op, "bias", *bias, "x", x);
  const Activation act = check_activation(op, "activation", activation);

  const bool last = is_channels_last(x);
  Tensor y = new_in_format(x, {n, m, s.out_h, s.out_w}, last);
  if (y.numel() == 0) return y;
  const Tensor in = in_format(x, last), w = in_format(weight, false);
  std::optional<Tensor> b;
  if (bias) b = bias->is_contiguous() ? *bias : torch::stable::contiguous(*bias);
  run({in.const_data_ptr(),
       w.const_data_ptr(),
       b ? b->const_data_ptr() : nullptr,
       y.mutable_data_ptr(),
       n,
       c,
       m,
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
       last,
       act,
       dtype},
      y);
  return y;
}

// The same walk from grad to grad_x: see depthwise_conv2d.h.
DepthwiseConv2d grad_x_call(const ConvSizes& s, const Tensor& grad, const Tensor& weight, Tensor& grad_x, bool last,
                            Dtype dtype) {
  return {grad.const_data_ptr(),
          weight.const_data_ptr(),
          nullptr,
          grad_x.mutable_data_ptr(),
          grad.size(0),
          grad.size(1),
          grad_x.size(1),
          s.out_h,
          s.out_w,
          s.kh,
          s.kw,
          s.h,
          s.w,
          1,
          1,
          s.stride_h,
          s.stride_w,
          (s.kh - 1) * s.dilation_h - s.top,
          (s.kw - 1) * s.dilation_w - s.left,
          s.dilation_h,
          s.dilation_w,
          true,
          last,
          Activation::none,
          dtype};
}

Tensor depthwise_conv2d_grad_x(const Tensor& grad, const Tensor& weight, const Ints& size, const Ints& stride,
                               const Ints& padding, const Ints& dilation) {
  constexpr const char* op = op_grad_x;
  CREST_CHECK(grad.dim() == 4, op, ": grad must have 4 dimensions, got ", Shape{grad});
  check_depthwise_weight(op, weight);
  CREST_CHECK(size.size() == 3, op, ": size must be 3 ints, got ", List{size});
  const int64_t n = grad.size(0), c = size[0], m = weight.size(0);
  CREST_CHECK(c > 0 && size[1] >= 0 && size[2] >= 0, op, ": size must be that of an image, got ", List{size});
  CREST_CHECK(m > 0 && m % c == 0, op, ": weight must have a multiple of ", c, " channels, those of x, got ",
              Shape{weight});
  const ConvSizes s = check_conv(op, size[1], size[2], weight.size(2), weight.size(3), stride, padding, dilation);
  CREST_CHECK(grad.size(1) == m && grad.size(2) == s.out_h && grad.size(3) == s.out_w, op,
              ": grad must have shape (n, ", m, ", ", s.out_h, ", ", s.out_w, "), got ", Shape{grad});
  const Dtype dtype = check_floating(op, "grad", grad);
  check_same_dtype(op, "weight", weight, "grad", grad);
  check_same_device(op, "weight", weight, "grad", grad);

  const bool last = is_channels_last(grad);
  Tensor grad_x = new_in_format(grad, {n, c, s.h, s.w}, last);
  if (grad_x.numel() == 0) return grad_x;
  run(grad_x_call(s, in_format(grad, last), in_format(weight, false), grad_x, last, dtype), grad_x);
  return grad_x;
}

namespace {

void on_cpu(const DepthwiseConv2d& args, const Tensor&) {
  const int64_t taps = args.kh * args.kw, channels = std::max(args.in_c, args.out_c);
  const int64_t work = args.out_h * args.out_w * taps;  // of one channel
  constexpr int64_t least = 1 << 15;                    // below this, a thread costs more than it saves
  if (!args.channels_last) {
    const auto kernel = CREST_KERNEL(depthwise_conv2d_planes);
    torch::stable::parallel_for(0, args.n * args.out_c, 1 + least / work,
                                [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
    return;
  }
  Scratch packed(taps * channels * (args.dtype == Dtype::float64 ? 2 : 1));
  void* p = packed.data();
  CREST_KERNEL(depthwise_conv2d_pack)(args, p, 0, channels);
  const auto kernel = CREST_KERNEL(depthwise_conv2d_pixels);
  torch::stable::parallel_for(0, args.n * ((args.out_h + 1) / 2), 1 + least / (2 * args.out_w * taps * channels),
                              [&](int64_t begin, int64_t end) { kernel(args, p, begin, end); });
}

void run(const DepthwiseConv2d& a, const Tensor& y) {
#ifdef CREST_CUDA
  if (y.is_cuda()) return cuda::depthwise_conv2d(a, CudaDevice(y).stream());
#endif
  on_cpu(a, y);
}

STABLE_TORCH_LIBRARY_IMPL(crest, CPU, m) {
  m.impl(op, TORCH_BOX(&depthwise_conv2d));
  m.impl(op_grad_x, TORCH_BOX(&depthwise_conv2d_grad_x));
}

#ifdef CREST_CUDA
STABLE_TORCH_LIBRARY_IMPL(crest, CUDA, m) {
  m.impl(op, TORCH_BOX(&depthwise_conv2d));
  m.impl(op_grad_x, TORCH_BOX(&depthwise_conv2d_grad_x));
}
#endif

}  // namespace
}  // namespace crest
