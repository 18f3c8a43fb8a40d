#include "masked_linear.h"

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

constexpr const char* op = "masked_linear";

template <auto run>
Tensor masked_linear(const Tensor& x, const Tensor& weight, const Tensor& mask, const std::optional<Tensor>& bias,
                     bool /*straight_through: for the gradient only*/) {
  CREST_CHECK(x.dim() >= 1, op, ": x must have at least 1 dimension, got ", Shape{x});
  CREST_CHECK(weight.dim() == 2, op, ": weight must have 2 dimensions, got ", Shape{weight});
  const int64_t k = x.size(-1), m = weight.size(0);
  CREST_CHECK(weight.size(1) == k, op, ": weight must have shape (m, ", k, "), got ", Shape{weight});
  check_same_shape(op, "mask", mask, "weight", weight);
  if (bias)
    CREST_CHECK(bias->dim() == 1 && bias->size(0) == m, op, ": bias must have shape (", m, ",), got ", Shape{*bias});
  const Dtype dtype = check_floating(op, "x", x);
  check_same_dtype(op, "weight", weight, "x", x);
  check_bool(op, "mask", mask);
  if (bias) check_same_dtype(op, "bias", *bias, "x", x);
  check_same_device(op, "weight", weight, "x", x);
  check_same_device(op, "mask", mask, "x", x);
  if (bias) check_same_device(op, "bias", *bias, "x", x);

  Tensor y = new_with_last(x, m);
  if (y.numel() > 0) {
    const Tensor in = as_matrix(x), out = as_matrix(y);
    const Tensor w = as_contiguous(weight), kept = as_contiguous(mask);
    std::optional<Tensor> b;
    if (bias) b = as_contiguous(*bias);
    run(MaskedLinear{in.const_data_ptr(), w.const_data_ptr(), kept.const_data_ptr<bool>(),
                     b ? b->const_data_ptr() : nullptr, out.mutable_data_ptr(), in.size(0), m, k, dtype},
        in, w, kept, b, out);
  }
  return y;
}

// Some rows of weight * mask at a time, so that they are still in cache when the product reads them.
void dense(const MaskedLinear& args, const Tensor& x, const Tensor& weight, const Tensor& mask,
           const std::optional<Tensor>& bias, Tensor y) {
  const int64_t rows = std::min(args.m, cached_rows(args.k * 4));
  Tensor scratch = aten::empty(weight, {rows, args.k});
  for (int64_t i = 0; i < args.m; i += rows) {
    const int64_t count = std::min(rows, args.m - i);
    const Tensor block = aten::rows(scratch, 0, count);
    apply_mask_block(weight, mask, args.dtype, i, 0, block);
    std::optional<Tensor> offset;
    if (bias) offset = aten::rows(*bias, i, count);
    aten::linear(x, block, offset, torch::stable::narrow(y, 1, i, count));
  }
}

// On one core with AVX-512, (500, 800) to (4096, 9216): the pass for few rows is ahead of panels at density 0.1 up to
// 8 rows, at 0.5 up to 16 to 24; panels are ahead of a dense product with a masked copy up to density 0.5 to 0.65.
constexpr Bounds bounds = {8, 0.5, 0.5};

void on_cpu(const MaskedLinear& args, const Tensor& x, const Tensor& weight, const Tensor& mask,
            const std::optional<Tensor>& bias, const Tensor& y) {
  const Regime regime = args.k == 0 ? Regime::few : choose(bounds, args.n, mask);
  if (regime == Regime::few) {
    const auto kernel = CREST_KERNEL(masked_linear_few);
    const int64_t grain = 1 + (1 << 15) / (args.n * args.k + 1);
    torch::stable::parallel_for(0, args.m, grain, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
  } else if (regime == Regime::sparse) {
    PanelScratch scratch(args.n, args.k, args.dtype);
    const Panels in = scratch.packed(x, args.dtype);
    const auto kernel = CREST_KERNEL(masked_linear_sparse);
    constexpr int64_t grain = 16;
    torch::stable::parallel_for(0, args.m, grain, [&](int64_t begin, int64_t end) { kernel(args, in, begin, end); });
  } else {
    dense(args, x, weight, mask, bias, y);
  }
}

STABLE_TORCH_LIBRARY_IMPL(crest, CPU, m) { m.impl(op, TORCH_BOX(&masked_linear<on_cpu>)); }

#ifdef CREST_CUDA
// Where the tensor cores' product overtakes the fused pass has not been measured.
constexpr int64_t fused_rows = 32;

void on_cuda(const MaskedLinear& args, const Tensor& x, const Tensor& weight, const Tensor&,
             const std::optional<Tensor>& bias, const Tensor& y) {
  const CudaDevice device(x);
  if (args.n <= fused_rows || args.k == 0) return cuda::masked_linear(args, device.stream());
  const Tensor masked = aten::empty(weight, weight.sizes());
  cuda::apply_mask({args.weight, args.mask, masked.mutable_data_ptr(), args.m * args.k, args.dtype}, device.stream());
  aten::linear(x, masked, bias, y);
}

STABLE_TORCH_LIBRARY_IMPL(crest, CUDA, m) { m.impl(op, TORCH_BOX(&masked_linear<on_cuda>)); }
#endif

}  // namespace
}  // namespace crest
