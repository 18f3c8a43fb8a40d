#include "apply_mask.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "aten.h"
#include "check.h"
#include "cuda_device.h"

namespace crest {
namespace {

template <auto run>
Tensor apply_mask(const Tensor& weight, const Tensor& mask, bool /*straight_through: for the gradient only*/) {
  check_same_shape("apply_mask", "mask", mask, "weight", weight);
  const Dtype dtype = check_floating("apply_mask", "weight", weight);
  check_bool("apply_mask", "mask", mask);
  check_same_device("apply_mask", "mask", mask, "weight", weight);

  const Tensor w = torch::stable::contiguous(weight);
  const Tensor m = torch::stable::contiguous(mask);
  Tensor y = aten::empty(w, w.sizes());
  if (y.numel() > 0)
    run(ApplyMask{w.const_data_ptr(), m.const_data_ptr<bool>(), y.mutable_data_ptr(), y.numel(), dtype}, w);
  return y;
}

void on_cpu(const ApplyMask& args, const Tensor&) {
  const auto kernel = CREST_KERNEL(apply_mask);
  constexpr int64_t grain = 1 << 15;
  torch::stable::parallel_for(0, args.n, grain, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

STABLE_TORCH_LIBRARY_IMPL(crest, CPU, m) { m.impl("apply_mask", TORCH_BOX(&apply_mask<on_cpu>)); }

#ifdef CREST_CUDA
void on_cuda(const ApplyMask& args, const Tensor& weight) {
  const CudaDevice device(weight);
  cuda::apply_mask(args, device.stream());
}

STABLE_TORCH_LIBRARY_IMPL(crest, CUDA, m) { m.impl("apply_mask", TORCH_BOX(&apply_mask<on_cuda>)); }
#endif

}  // namespace
}  // namespace crest
