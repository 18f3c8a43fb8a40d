#include "masked_linear_grad_weight.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "aten.h"
#include "check.h"
#include "cuda_device.h"
#include "masked_linear_cpu.h"

namespace crest {
namespace {

constexpr const char* op = "masked_linear_grad_weight";

template <auto run>
Tensor masked_linear_grad_weight(const Tensor& grad, const Tensor& x, const Tensor& mask) {
  CREST_CHECK(grad.dim() >= 1, op, ": grad must have at least 1 dimension, got ", Shape{grad});
  CREST_CHECK(x.dim() == grad.dim(), op, ": x must have ", grad.dim(), " dimensions like grad, got ", Shape{x});
  CREST_CHECK(mask.dim() == 2, op, ": mask must have 2 dimensions, got ", Shape{mask});
  const int64_t m = grad.size(-1), k = x.size(-1);
  const auto but_last = [](const Tensor& t) { return t.sizes().slice(0, t.dim() - 1); };
  CREST_CHECK(but_last(x).equals(but_last(grad)), op, ": x must have shape ", Shape{grad, "k"}, ", got ", Shape{x});
  CREST_CHECK(mask.size(0) == m && mask.size(1) == k, op, ": mask must have shape (", m, ", ", k, "), got ",
              Shape{mask});
  const Dtype dtype = check_floating(op, "grad", grad);
  check_same_dtype(op, "x", x, "grad", grad);
  check_bool(op, "mask", mask);
  check_same_device(op, "x", x, "grad", grad);
  check_same_device(op, "mask", mask, "grad", grad);

  Tensor grad_weight = aten::empty(grad, {m, k});
  if (grad_weight.numel() > 0) {
    const Tensor g = as_matrix(grad), x2 = as_matrix(x), kept = as_contiguous(mask);
    run(MaskedLinearGradWeight{g.const_data_ptr(), x2.const_data_ptr(), kept.const_data_ptr<bool>(),
                               grad_weight.mutable_data_ptr(), g.size(0), m, k, dtype},
        g, x2, kept, grad_weight);
  }
  return grad_weight;
}

// Some rows of grad^T x at a time, so that they are still in cache when the mask is applied.
void dense(const MaskedLinearGradWeight& args, Tensor grad, const Tensor& x, const Tensor& mask, Tensor grad_weight) {
  const int64_t rows = std::min(args.m, cached_rows(args.k * 4));
  for (int64_t i = 0; i < args.m; i += rows) {
    const int64_t count = std::min(rows, args.m - i);
    const Tensor block = aten::rows(grad_weight, i, count);
    aten::mm(torch::stable::transpose(torch::stable::narrow(grad, 1, i, count), 0, 1), x, block);
    apply_mask_block(grad_weight, mask, args.dtype, i, 0, block);
  }
}

// On one core with AVX-512, (500, 800) to (4096, 9216): the pass for few rows is ahead of panels up to 8 to 16 rows,
// for 24 above density 0.1 to 0.2, for 32 above 0.2; panels are ahead of a dense product and the mask up to 0.5 to 0.6.
constexpr Bounds bounds = {16, 0.15, 0.5};

void on_cpu(const MaskedLinearGradWeight& args, const Tensor& grad, const Tensor& x, const Tensor& mask,
            const Tensor& grad_weight) {
  prefer_huge_pages(grad_weight);
  const Regime regime = choose(bounds, args.n, mask);
  if (regime == Regime::few) {
    const auto kernel = CREST_KERNEL(masked_linear_grad_weight_few);
    const int64_t grain = 1 + (1 << 15) / ((args.n + 1) * args.k);
    torch::stable::parallel_for(0, args.m, grain, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
  } else if (regime == Regime::sparse) {
    PanelScratch scratch(args.n, args.m + args.k, args.dtype);
    const Panels g = scratch.packed(grad, args.dtype), in = scratch.packed(x, args.dtype);
    const auto kernel = CREST_KERNEL(masked_linear_grad_weight_sparse);
    constexpr int64_t grain = 16;
    torch::stable::parallel_for(0, args.m, grain, [&](int64_t begin, int64_t end) { kernel(args, g, in, begin, end); });
  } else {
    dense(args, grad, x, mask, grad_weight);
  }
}

STABLE_TORCH_LIBRARY_IMPL(crest, CPU, m) { m.impl(op, TORCH_BOX(&masked_linear_grad_weight<on_cpu>)); }

#ifdef CREST_CUDA
// The density at which the tensor cores' product overtakes the sampled one has not been measured.
void on_cuda(const MaskedLinearGradWeight& args, const Tensor& grad, const Tensor&, const Tensor&, const Tensor&) {
  const CudaDevice device(grad);
  cuda::masked_linear_grad_weight(args, device.stream());
}

STABLE_TORCH_LIBRARY_IMPL(crest, CUDA, m) { m.impl(op, TORCH_BOX(&masked_linear_grad_weight<on_cuda>)); }
#endif

}  // namespace
}  // namespace crest
