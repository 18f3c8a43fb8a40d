#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "aten.h"
#include "cuda_device.h"
#include "depthwise_conv2d_grads.h"

namespace crest {
namespace {

constexpr const char* op = "depthwise_conv2d_grad_weight";

void run(const DepthwiseConv2dGradWeight& a, const Tensor& grad_weight);  // where it is

}  // namespace

DepthwiseConv2dGradWeight grad_weight_call(const ConvSizes& s, const Tensor& grad, const Tensor& x, Tensor& grad_weight,
                                           bool last, Dtype dtype) {
  return {grad.const_data_ptr(),
          x.const_data_ptr(),
          grad_weight.mutable_data_ptr(),
          x.size(0),
          x.size(1),
          grad.size(1) / x.size(1),
          s.h,
          s.w,
          s.kh,
          s.kw,
          s.out_h,
          s.out_w,
          s.stride_h,
          s.stride_w,
          s.top,
          s.left,
          s.dilation_h,
          s.dilation_w,
          last,
          dtype};
}

Tensor depthwise_conv2d_grad_weight(const Tensor& grad, const Tensor& x, const Ints& kernel_size, const Ints& stride,
                                    const Ints& padding, const Ints& dilation) {
  CREST_CHECK(grad.dim() == 4, op, ": grad must have 4 dimensions, got ", Shape{grad});
  CREST_CHECK(x.dim() == 4, op, ": x must have 4 dimensions, got ", Shape{x});
  const int64_t n = x.size(0), c = x.size(1), m = grad.size(1);
  CREST_CHECK(c > 0, op, ": x must have channels, got ", Shape{x});
  CREST_CHECK(m > 0 && m % c == 0, op, ": grad must have a multiple of ", c, " channels, those of x, got ",
              Shape{grad});
  CREST_CHECK(kernel_size.size() == 2 && kernel_size[0] > 0 && kernel_size[1] > 0, op,
              ": kernel_size must be 2 ints of at least 1, got ", List{kernel_size});
  const ConvSizes s = check_conv(op, x.size(2), x.size(3), kernel_size[0], kernel_size[1], stride, padding, dilation);
  CREST_CHECK(grad.size(0) == n && grad.size(2) == s.out_h && grad.size(3) == s.out_w, op, ": grad must have shape (",
              n, ", ", m, ", ", s.out_h, ", ", s.out_w, "), got ", Shape{grad});
  const Dtype dtype = check_floating(op, "grad", grad);
  check_same_dtype(op, "x", x, "grad", grad);
  check_same_device(op, "x", x, "grad", grad);

  Tensor grad_weight = aten::empty(grad, {m, 1, s.kh, s.kw});
  const bool last = is_channels_last(x);
  run(grad_weight_call(s, in_format(grad, last), in_format(x, last), grad_weight, last, dtype), grad_weight);
  return grad_weight;
}

namespace {

void on_cpu(const DepthwiseConv2dGradWeight& args, const Tensor&) {
  const auto kernel = args.channels_last ? CREST_KERNEL(depthwise_conv2d_grad_weight_pixels)
                                         : CREST_KERNEL(depthwise_conv2d_grad_weight_planes);
  const int64_t work = args.n * args.out_h * args.out_w * args.kh * args.kw;  // of one channel
  // Whole cache lines of pixels: 64 channels.
  torch::stable::parallel_for(0, args.c * args.multiplier, args.channels_last ? 64 : 1 + (1 << 15) / (work + 1),
                              [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

void run(const DepthwiseConv2dGradWeight& a, const Tensor& grad_weight) {
#ifdef CREST_CUDA
  if (grad_weight.is_cuda()) return cuda::depthwise_conv2d_grad_weight(a, CudaDevice(grad_weight).stream());
#endif
  on_cpu(a, grad_weight);
}

STABLE_TORCH_LIBRARY_IMPL(crest, CPU, m) { m.impl(op, TORCH_BOX(&depthwise_conv2d_grad_weight)); }

#ifdef CREST_CUDA
STABLE_TORCH_LIBRARY_IMPL(crest, CUDA, m) { m.impl(op, TORCH_BOX(&depthwise_conv2d_grad_weight)); }
#endif

}  // namespace
}  // namespace crest
