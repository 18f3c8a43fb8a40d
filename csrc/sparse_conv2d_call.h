#pragma once
// A call of sparse_conv2d that has been checked: what both ways to hold x, a tensor and planes, begin with.
#include <optional>

#include "conv_host.h"
#include "max_pool2d_call.h"
#include "sparse_conv2d.h"
#include "text.h"

namespace crest {

class SparseConv2dCall {
 public:
  // x has the dtype and device, and `sizes` are (n, c, h, w). All but x, y and addend is set in `a`.
  SparseConv2dCall(const Tensor& x, const Ints& sizes, const Tensor& values, const Tensor& columns,
                   const Tensor& starts, const Ints& weight_shape, const std::optional<Tensor>& bias,
                   const Ints& stride, const Ints& padding, const Ints& dilation, int64_t groups,
                   const Text& activation);

  // Checks what is to be added to the result, (n, m, oh, ow).
  void check_addend(const Tensor& x, const Tensor& addend, const Ints& sizes) const;

  SparseConv2d a{};

 private:
  Tensor values_, columns_, starts_;
  std::optional<Tensor> bias_;
};

Tensor run_sparse_conv2d(const Tensor& x, SparseConv2dCall call, const std::optional<Tensor>& addend);
// max_pool2d of the result, on the CPU and of a kernel of more than 1x1: windows look into the planes of its sums.
Tensor run_pooled_sparse_conv2d(const Tensor& x, SparseConv2dCall call, const Window& window);

// On torch's threads: planes of x, filters times these, with `kept` as in ConvProduct, and y of planes.
void pack_planes(const SparseConv2d& a, const ConvPlanes& p, float* planes);
void multiply_planes(const SparseConv2d& a, const ConvPlanes& p, const float* x, float* y, const bool* kept);
void unpack_planes(const SparseConv2d& a, const ConvPlanes& p, const float* planes);

}  // namespace crest
