#include "sgd_prune_splice.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "check.h"
#include "cuda_device.h"

namespace crest {
namespace {

constexpr const char* op = "sgd_prune_splice_";

template <auto run>
void sgd_prune_splice(const Tensor& weight, const Tensor& grad, const Tensor& momentum_buffer, const Tensor& mask,
                      double lr, double momentum, double weight_decay, double low, double high, bool update_mask) {
  check_same_shape(op, "grad", grad, "weight", weight);
  check_same_shape(op, "momentum_buffer", momentum_buffer, "weight", weight);
  check_same_shape(op, "mask", mask, "weight", weight);
  const Dtype dtype = check_floating(op, "weight", weight);
  check_same_dtype(op, "grad", grad, "weight", weight);
  check_same_dtype(op, "momentum_buffer", momentum_buffer, "weight", weight);
  check_bool(op, "mask", mask);
  check_same_device(op, "grad", grad, "weight", weight);
  check_same_device(op, "momentum_buffer", momentum_buffer, "weight", weight);
  check_same_device(op, "mask", mask, "weight", weight);
  check_contiguous(op, "weight", weight);
  check_contiguous(op, "momentum_buffer", momentum_buffer);
  check_contiguous(op, "mask", mask);
  CREST_CHECK(low <= high, op, ": low must be at most high, ", high, ", got ", low);

  const Tensor g = torch::stable::contiguous(grad);
  if (weight.numel() > 0)
    run(SgdPruneSplice{weight.mutable_data_ptr(), g.const_data_ptr(), momentum_buffer.mutable_data_ptr(),
                       mask.mutable_data_ptr<bool>(), weight.numel(), lr, momentum, weight_decay, low, high,
                       update_mask, dtype},
        weight);
}

void on_cpu(const SgdPruneSplice& args, const Tensor&) {
  const auto kernel = CREST_KERNEL(sgd_prune_splice);
  constexpr int64_t grain = 1 << 15;
  torch::stable::parallel_for(0, args.n, grain, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

STABLE_TORCH_LIBRARY_IMPL(crest, CPU, m) { m.impl("sgd_prune_splice_", TORCH_BOX(&sgd_prune_splice<on_cpu>)); }

#ifdef CREST_CUDA
void on_cuda(const SgdPruneSplice& args, const Tensor& weight) {
  const CudaDevice device(weight);
  cuda::sgd_prune_splice(args, device.stream());
}

STABLE_TORCH_LIBRARY_IMPL(crest, CUDA, m) { m.impl("sgd_prune_splice_", TORCH_BOX(&sgd_prune_splice<on_cuda>)); }
#endif

}  // namespace
}  // namespace crest
