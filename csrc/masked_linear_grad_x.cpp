#include "masked_linear_grad_x.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "apply_mask.h"
#include "aten.h"
#include "check.h"
#include "cuda_device.h"
#include "masked_linear_cpu.h"

namespace crest {
namespace {

constexpr const char* op = "masked_linear_grad_x";

template <auto run>
Tensor masked_linear_grad_x(const Tensor& grad, const Tensor& weight, const Tensor& mask) {
  CREST_CHECK(grad.dim() >= 1, op, ": grad must have at least 1 dimension, got ", Shape{grad});
  CREST_CHECK(weight.dim() == 2, op, ": weight must have 2 dimensions, got ", Shape{weight});
  const int64_t m = grad.size(-1), k = weight.size(1);
  CREST_CHECK(weight.size(0) == m, op, ": weight must have shape (", m, ", k), got ", Shape{weight});
  check_same_shape(op, "mask", mask, "weight", weight);
  const Dtype dtype = check_floating(op, "grad", grad);
  check_same_dtype(op, "weight", weight, "grad", grad);
  check_bool(op, "mask", mask);
  check_same_device(op, "weight", weight, "grad", grad);
  check_same_device(op, "mask", mask, "grad", grad);

  const Tensor g = as_matrix(grad);
  Tensor grad_x = new_with_last(grad, k);
  if (grad_x.numel() > 0) {
    const Tensor w = as_contiguous(weight), kept = as_contiguous(mask);
    const Tensor x = as_matrix(grad_x);
    run(MaskedLinearGradX{g.const_data_ptr(), w.const_data_ptr(), kept.const_data_ptr<bool>(), x.mutable_data_ptr(),
                          g.size(0), m, k, dtype},
        g, w, kept, x);
  }
  return grad_x;
}

// Some columns of weight * mask at a time, so that they are still in cache when the product reads them.
void dense(const MaskedLinearGradX& args, const Tensor& grad, const Tensor& weight, const Tensor& mask, Tensor grad_x) {
  const int64_t columns = std::min(args.k, cached_rows(args.m * 4));
  for (int64_t j = 0; j < args.k; j += columns) {
    const int64_t count = std::min(columns, args.k - j);
    const Tensor block = aten::empty(weight, {args.m, count});
    apply_mask_block(weight, mask, args.dtype, 0, j, block);
    aten::mm(grad, block, torch::stable::narrow(grad_x, 1, j, count));
  }
}

// On one core with AVX-512, (500, 800) to (4096, 9216): the pass for few rows is ahead of panels up to 16 rows, for 24
// above density 0.15, for 32 above 0.2 to 0.3; panels are ahead of a dense product with a masked copy up to 0.4 to 0.5.
constexpr Bounds bounds = {16, 0.15, 0.4};

void on_cpu(const MaskedLinearGradX& args, const Tensor& grad, const Tensor& weight, const Tensor& mask,
            Tensor grad_x) {
  if (args.m == 0) {
    torch::stable::zero_(grad_x);
    return;
  }
  const Regime regime = choose(bounds, args.n, mask);
  if (regime == Regime::few) {
    const auto kernel = CREST_KERNEL(masked_linear_grad_x_few);
    constexpr int64_t grain = 256;
    torch::stable::parallel_for(0, args.k, grain, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
  } else if (regime == Regime::sparse) {
    PanelScratch scratch(args.n, args.m + args.k, args.dtype);
    const Panels in = scratch.packed(grad, args.dtype), out = scratch.take(args.k);
    const auto kernel = CREST_KERNEL(masked_linear_grad_x_sparse);
    constexpr int64_t grain = 128;
    torch::stable::parallel_for(0, args.k, grain,
                                [&](int64_t begin, int64_t end) { kernel(args, in, out, begin, end); });
    unpack(out, grad_x, args.dtype);
  } else {
    dense(args, grad, weight, mask, grad_x);
  }
}

STABLE_TORCH_LIBRARY_IMPL(crest, CPU, m) { m.impl(op, TORCH_BOX(&masked_linear_grad_x<on_cpu>)); }

#ifdef CREST_CUDA
// Where the tensor cores' product overtakes the fused pass has not been measured.
constexpr int64_t fused_rows = 32;

void on_cuda(const MaskedLinearGradX& args, const Tensor& grad, const Tensor& weight, const Tensor&,
             const Tensor& grad_x) {
  const CudaDevice device(grad);
  if (args.n <= fused_rows || args.m == 0) return cuda::masked_linear_grad_x(args, device.stream());
  const Tensor masked = aten::empty(weight, weight.sizes());
  cuda::apply_mask({args.weight, args.mask, masked.mutable_data_ptr(), args.m * args.k, args.dtype}, device.stream());
  aten::mm(grad, masked, grad_x);
}

STABLE_TORCH_LIBRARY_IMPL(crest, CUDA, m) { m.impl(op, TORCH_BOX(&masked_linear_grad_x<on_cuda>)); }
#endif

}  // namespace
}  // namespace crest
