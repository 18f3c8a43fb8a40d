#include "prune_splice.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "check.h"
#include "cuda_device.h"

namespace crest {
namespace {

template <auto run>
void prune_splice(const Tensor& weight, const Tensor& mask, double low, double high) {
  check_same_shape("prune_splice_", "mask", mask, "weight", weight);
  const Dtype dtype = check_floating("prune_splice_", "weight", weight);
  check_bool("prune_splice_", "mask", mask);
  check_same_device("prune_splice_", "mask", mask, "weight", weight);
  check_contiguous("prune_splice_", "mask", mask);
  CREST_CHECK(low <= high, "prune_splice_: low must be at most high, ", high, ", got ", low);

  const Tensor w = torch::stable::contiguous(weight);
  if (w.numel() > 0)
    run(PruneSplice{w.const_data_ptr(), mask.mutable_data_ptr<bool>(), w.numel(), low, high, dtype}, w);
}

void on_cpu(const PruneSplice& args, const Tensor&) {
  const auto kernel = CREST_KERNEL(prune_splice);
  constexpr int64_t grain = 1 << 15;
  torch::stable::parallel_for(0, args.n, grain, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

STABLE_TORCH_LIBRARY_IMPL(crest, CPU, m) { m.impl("prune_splice_", TORCH_BOX(&prune_splice<on_cpu>)); }

#ifdef CREST_CUDA
void on_cuda(const PruneSplice& args, const Tensor& weight) {
  const CudaDevice device(weight);
  cuda::prune_splice(args, device.stream());
}

STABLE_TORCH_LIBRARY_IMPL(crest, CUDA, m) { m.impl("prune_splice_", TORCH_BOX(&prune_splice<on_cuda>)); }
#endif

}  // namespace
}  // namespace crest
