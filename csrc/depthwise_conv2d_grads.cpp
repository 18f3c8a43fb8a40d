// Both gradients at once: what one kernel has read of grad is still near when the other one reads it.
#include "depthwise_conv2d_grads.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <tuple>

#include "aten.h"
#include "scratch.h"

namespace crest {
namespace {

constexpr const char* op = "depthwise_conv2d_grads";

// Numbers of grad, x and grad_x that go through both kernels before the next: they stay in the second level of cache.
constexpr int64_t near = 1 << 18;

// Some channels of all images after the other.
void planes(const DepthwiseConv2d& gx, const DepthwiseConv2dGradWeight& gw) {
  const auto of_x = CREST_KERNEL(depthwise_conv2d_planes);
  const auto of_weight = CREST_KERNEL(depthwise_conv2d_grad_weight_planes);
  const int64_t work = 2 * gw.n * gw.out_h * gw.out_w * gw.kh * gw.kw;  // of one channel
  const int64_t some = std::max<int64_t>(1, near / (gw.n * (gw.out_h * gw.out_w + 2 * gw.h * gw.w)));
  torch::stable::parallel_for(0, gw.c, 1 + (1 << 15) / (work + 1), [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; c += some) {
      const int64_t next = std::min(c + some, end);
      of_weight(gw, c, next);
      for (int64_t i = 0; i < gw.n; ++i) of_x(gx, i * gw.c + c, i * gw.c + next);
    }
  });
}

// Some images after the other, or some rows of one. Each part has its sums, so that they do not depend on threads.
void pixels(const DepthwiseConv2d& gx, const DepthwiseConv2dGradWeight& gw) {
  const auto of_x = CREST_KERNEL(depthwise_conv2d_pixels);
  const auto of_weight = CREST_KERNEL(depthwise_conv2d_grad_weight_pixels);
  const int64_t size = gw.kh * gw.kw * gw.c, image = (gw.out_h * gw.out_w + 2 * gw.h * gw.w) * gw.c;
  const int64_t images = std::clamp<int64_t>(near / image, 1, gw.n), groups = (gw.n + images - 1) / images;
  const int64_t parts = std::min((image + near - 1) / near, gw.out_h), count = groups * parts;  // of an image
  const int64_t pairs = (gx.out_h + 1) / 2;                                                     // of rows of grad_x
  Scratch packed(size), sums(count * size);
  CREST_KERNEL(depthwise_conv2d_pack)(gx, packed.data(), 0, gw.c);
  torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t u = begin; u < end; ++u) {
      const int64_t n = u / parts * images, part = u % parts, first = part * gw.out_h / parts;
      DepthwiseConv2dGradWeight some = gw;
      some.n = std::min(images, gw.n - n);
      some.grad = static_cast<const float*>(gw.grad) + (n * gw.out_h + first) * gw.out_w * gw.c;
      some.x = static_cast<const float*>(gw.x) + n * gw.h * gw.w * gw.c;
      some.grad_weight = sums.data() + u * size;
      some.out_h = (part + 1) * gw.out_h / parts - first;
      some.top = gw.top - first * gw.stride_h;
      of_weight(some, 0, gw.c);
      of_x(gx, packed.data(), n * pairs + part * pairs / parts, (n + some.n - 1) * pairs + (part + 1) * pairs / parts);
    }
  });
  float* sum = static_cast<float*>(gw.grad_weight);
  std::copy_n(sums.data(), size, sum);
  for (int64_t u = 1; u < count; ++u)
    for (int64_t i = 0; i < size; ++i) sum[i] += sums.data()[u * size + i];
}

using Both = std::tuple<Tensor, Tensor>;

Both depthwise_conv2d_grads(const Tensor& grad, const Tensor& x, const Tensor& weight, const Ints& stride,
                            const Ints& padding, const Ints& dilation) {
  CREST_CHECK(x.dim() == 4, op, ": x must have 4 dimensions, got ", Shape{x});
  check_depthwise_weight(op, weight);
  const int64_t n = x.size(0), c = x.size(1), m = weight.size(0);
  CREST_CHECK(c > 0, op, ": x must have channels, got ", Shape{x});
  CREST_CHECK(m > 0 && m % c == 0, op, ": weight must have a multiple of ", c, " channels, those of x, got ",
              Shape{weight});
  const ConvSizes s = check_conv(op, x.size(2), x.size(3), weight.size(2), weight.size(3), stride, padding, dilation);
  CREST_CHECK(sizes_of(grad) == (Ints{n, m, s.out_h, s.out_w}), op, ": grad must have shape (", n, ", ", m, ", ",
              s.out_h, ", ", s.out_w, "), got ", Shape{grad});
  const Dtype dtype = check_floating(op, "grad", grad);
  for (const auto& [arg, t] : {std::pair{"x", &x}, {"weight", &weight}}) {
    check_same_dtype(op, arg, *t, "grad", grad);
    check_same_device(op, arg, *t, "grad", grad);
  }

  const bool last = is_channels_last(x);
  const Tensor g = in_format(grad, last), in = in_format(x, last);
  // Sums of parts in a half type would round.
  if (grad.is_cuda() || m != c || x.numel() == 0 || (last && dtype != Dtype::float32))
    return {depthwise_conv2d_grad_x(g, weight, {c, s.h, s.w}, stride, padding, dilation),
            depthwise_conv2d_grad_weight(g, in, {s.kh, s.kw}, stride, padding, dilation)};
  Tensor grad_x = new_in_format(x, {n, c, s.h, s.w}, last), grad_weight = aten::empty(grad, {c, 1, s.kh, s.kw});
  const auto both = last ? pixels : planes;
  both(grad_x_call(s, g, in_format(weight, false), grad_x, last, dtype),
       grad_weight_call(s, g, in, grad_weight, last, dtype));
  return {grad_x, grad_weight};
}

STABLE_TORCH_LIBRARY_IMPL(crest, CPU, m) { m.impl(op, TORCH_BOX(&depthwise_conv2d_grads)); }

#ifdef CREST_CUDA
STABLE_TORCH_LIBRARY_IMPL(crest, CUDA, m) { m.impl(op, TORCH_BOX(&depthwise_conv2d_grads)); }
#endif

}  // namespace
}  // namespace crest
