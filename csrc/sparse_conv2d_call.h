#pragma once
// A call of sparse_conv2d that has been checked: what both ways to hold x, a tensor and planes, begin with.
#include <torch/csrc/stable/ops.h>

#include <memory>
#include <optional>

#include "conv_host.h"
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

// Filters times planes of x, into those of y, on torch's threads; `kept` as in ConvProduct.
void multiply_planes(const SparseConv2d& a, const ConvPlanes& p, const float* x, float* y, const bool* kept);

// f(room, begin, end) for parts of [0, items), each of which has so many `numbers`; room is of `flat` numbers.
template <class F>
void for_planes(int64_t items, int64_t numbers, int64_t flat, const F& f) {
  torch::stable::parallel_for(0, items, 1 + (1 << 15) / numbers, [&](int64_t begin, int64_t end) {
    const std::unique_ptr<float[]> room(new float[flat]);
    f(room.get(), begin, end);
  });
}

}  // namespace crest
