#include "max_pool2d.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "aten.h"
#include "conv_host.h"
#include "cuda_device.h"
#include "inference.h"
#include "max_pool2d_call.h"
#include "scratch.h"

namespace crest {
namespace {

constexpr const char* op = "max_pool2d";

// Windows of one side; with ceil_mode the last may reach beyond the padding, if it begins before that.
int64_t windows(int64_t size, int64_t pad, int64_t reach, int64_t stride, bool ceil_mode) {
  const int64_t room = size + 2 * pad - reach;
  if (!ceil_mode) return room / stride + 1;
  const int64_t count = (room + stride - 1) / stride + 1;
  return (count - 1) * stride >= size + pad ? count - 1 : count;
}

void run(const MaxPool2d& a, const Tensor& y);  // where it is

}  // namespace

MaxPool2d check_max_pool2d(const Tensor& x, const Ints& sizes, const Window& by) {
  const auto& [kernel, stride, padding, dilation, ceil_mode] = by;
  CREST_CHECK(sizes.size() == 4, op, ": x must have 4 dimensions, got ", List{sizes});
  CREST_CHECK(x.scalar_type() == ScalarType::Float, op, ": x must be float32, got ", Type{x});
  check_pair(op, "kernel_size", kernel, 1);
  check_pair(op, "stride", stride, 1);
  check_pair(op, "padding", padding, 0);
  check_pair(op, "dilation", dilation, 1);
  CREST_CHECK(2 * padding[0] <= kernel[0] && 2 * padding[1] <= kernel[1], op,
              ": padding must be at most half of kernel_size, ", List{kernel}, ", got ", List{padding});
  const int64_t h = sizes[2], w = sizes[3];
  const Ints reach{(kernel[0] - 1) * dilation[0] + 1, (kernel[1] - 1) * dilation[1] + 1};
  CREST_CHECK(h > 0 && w > 0 && reach[0] <= h + 2 * padding[0] && reach[1] <= w + 2 * padding[1], op,
              ": x must be as large as a window, ", List{reach}, " with padding ", List{padding}, ", got ",
              List{sizes});
  const int64_t out_h = windows(h, padding[0], reach[0], stride[0], ceil_mode);
  const int64_t out_w = windows(w, padding[1], reach[1], stride[1], ceil_mode);
  return {nullptr, nullptr,   sizes[0] * sizes[1], h,          w,          kernel[0],   kernel[1],  out_h,
          out_w,   stride[0], stride[1],           padding[0], padding[1], dilation[0], dilation[1]};
}

Tensor max_pool2d(const Tensor& x, const Ints& kernel, const Ints& stride, const Ints& padding, const Ints& dilation,
                  bool ceil_mode) {
  MaxPool2d a = check_max_pool2d(x, sizes_of(x), {kernel, stride, padding, dilation, ceil_mode});
  const Tensor in = in_format(x, false);
  Tensor y = aten::empty(in, {x.size(0), x.size(1), a.out_h, a.out_w});
  if (y.numel() == 0) return y;
  a.x = in.const_data_ptr<float>(), a.y = y.mutable_data_ptr<float>();
  run(a, y);
  return y;
}

void max_pool2d_on_cpu(const MaxPool2d& a) {
  const auto kernel = CREST_KERNEL(max_pool2d);
  torch::stable::parallel_for(0, a.planes, 1 + (1 << 15) / (a.out_h * (a.w + a.out_w)),
                              [&](int64_t begin, int64_t end) {
                                Scratch line(a.line_numbers());
                                kernel(a, line.data(), begin, end);
                              });
}

namespace {

void run(const MaxPool2d& a, [[maybe_unused]] const Tensor& y) {
#ifdef CREST_CUDA
  if (y.is_cuda()) return cuda::max_pool2d(a, CudaDevice(y).stream());
#endif
  max_pool2d_on_cpu(a);
}

STABLE_TORCH_LIBRARY_IMPL(crest, CPU, m) { m.impl(op, TORCH_BOX(&max_pool2d)); }

#ifdef CREST_CUDA
STABLE_TORCH_LIBRARY_IMPL(crest, CUDA, m) { m.impl(op, TORCH_BOX(&max_pool2d)); }
#endif

}  // namespace
}  // namespace crest
