#include "sparse_linear.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <vector>

#include "aten.h"
#include "check.h"
#include "conv_host.h"
#include "cuda_device.h"
#include "inference.h"
#include "scratch.h"

namespace crest {
namespace {

constexpr const char* op = "sparse_linear";

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Asking torch for what is contiguous already costs as much as a small layer.
Tensor in_order(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }

void check_packed(const char* arg, const Tensor& t, const Tensor& x, ScalarType type, int64_t size, int64_t width) {
  const bool wide = width > 1;
  CREST_CHECK(t.dim() == (wide ? 2 : 1), op, ": ", arg, " must have ", wide ? "2 dimensions" : "1 dimension", ", got ",
              Shape{t});
  CREST_CHECK(!wide || t.size(1) == width, op, ": ", arg, " must have ", width, " columns, got ", Shape{t});
  CREST_CHECK(size < 0 || t.size(0) == size, op, ": ", arg, " must have ", size, wide ? " rows" : " elements", ", got ",
              Shape{t});
  CREST_CHECK(t.scalar_type() == type, op, ": ", arg, " must be ", type == ScalarType::Byte ? "uint8" : "int32",
              ", got ", Type{t});
  check_same_device(op, arg, t, "x", x);
}

void run(const SparseLinear& a, const Tensor& x, int64_t steps);  // where it is

}  // namespace

// What the index tensors hold is not checked here, at each call, but once by crest_ext.PackedSparse.check.
Tensor sparse_linear(const Tensor& x, const Tensor& values, const Tensor& columns, const Tensor& rows,
                     const Tensor& steps, const Tensor& slices, int64_t m, int64_t k, const std::optional<Tensor>& bias,
                     const Text& activation) {
  CREST_CHECK(x.dim() >= 1, op, ": x must have at least 1 dimension, got ", Shape{x});
  CREST_CHECK(m >= 0 && k >= 0, op, ": out_features and in_features must not be negative, got ", m, " and ", k);
  CREST_CHECK(x.size(-1) == k, op, ": x must have shape (..., ", k, "), got ", Shape{x});
  CREST_CHECK(x.scalar_type() == ScalarType::Float, op, ": x must be float32, got ", Type{x});
  CREST_CHECK(values.dim() == 2 && values.size(1) == slice_rows, op, ": values must have shape (steps, ", slice_rows,
              "), got ", Shape{values});
  const Dtype dtype = check_floating(op, "values", values);
  CREST_CHECK(dtype != Dtype::float64, op, ": values must be float32, bfloat16 or float16, got float64");
  check_same_device(op, "values", values, "x", x);
  const int64_t blocks = ceil_div(m, most_block_rows), tiles = ceil_div(k, tile_columns);
  check_packed("columns", columns, x, ScalarType::Byte, values.size(0), slice_rows);
  check_packed("rows", rows, x, ScalarType::Byte, -1, slice_rows);
  check_packed("steps", steps, x, ScalarType::Int, rows.size(0) + 1, 1);
  check_packed("slices", slices, x, ScalarType::Int, blocks * tiles + 1, 1);
  if (bias) {
    CREST_CHECK(bias->dim() == 1 && bias->size(0) == m, op, ": bias must have shape (", m, ",), got ", Shape{*bias});
    check_same_dtype(op, "bias", *bias, "x", x);
    check_same_device(op, "bias", *bias, "x", x);
  }
  const Activation act = check_activation(op, "activation", activation);

  std::vector<int64_t> shape(x.sizes().begin(), x.sizes().end());
  shape.back() = m;
  Tensor y = aten::empty(x, shape);
  if (y.numel() == 0) return y;
  const Tensor in = in_order(x), v = in_order(values), c = in_order(columns), r = in_order(rows), s = in_order(steps),
               l = in_order(slices);
  std::optional<Tensor> b;
  if (bias) b = in_order(*bias);
  run(SparseLinear{in.const_data_ptr<float>(), v.const_data_ptr(), c.const_data_ptr<uint8_t>(),
                   r.const_data_ptr<uint8_t>(), s.const_data_ptr<int32_t>(), l.const_data_ptr<int32_t>(),
                   b ? b->const_data_ptr<float>() : nullptr, y.mutable_data_ptr<float>(), y.numel() / m, m, k, blocks,
                   ceil_div(ceil_div(m, blocks), slice_rows) * slice_rows, tiles, act, dtype},
      in, values.size(0));
  return y;
}

namespace {

void on_cpu(const SparseLinear& args, const Tensor&, int64_t steps) {
  const int64_t grain = 1 + (1 << 12) / args.n;
  if (args.n <= few_rows_of_x) {
    const auto kernel = CREST_KERNEL(sparse_linear_few);
    // One more than there are steps: blocks without any at the end begin there.
    torch::stable::parallel_for(0, steps + 1, grain, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
    return;
  }
  int64_t last = narrowest_panel;  // width of the last panel
  while (last < (args.n - 1) % widest_panel + 1) last *= 2;
  Scratch panels(((args.n - 1) / widest_panel * widest_panel + last) * args.k);
  float* p = panels.data();
  const auto pack = CREST_KERNEL(sparse_linear_pack);
  torch::stable::parallel_for(0, args.k, std::max<int64_t>(16, (1 << 15) / args.n),
                              [&](int64_t begin, int64_t end) { pack(args, p, begin, end); });
  const auto kernel = CREST_KERNEL(sparse_linear_panels);
  torch::stable::parallel_for(0, steps + 1, grain, [&](int64_t begin, int64_t end) { kernel(args, p, begin, end); });
}

void run(const SparseLinear& a, const Tensor& x, int64_t steps) {
#ifdef CREST_CUDA
  if (x.is_cuda()) return cuda::sparse_linear(a, CudaDevice(x).stream());
#endif
  on_cpu(a, x, steps);
}

STABLE_TORCH_LIBRARY_IMPL(crest, CPU, m) { m.impl(op, TORCH_BOX(&sparse_linear)); }

#ifdef CREST_CUDA
STABLE_TORCH_LIBRARY_IMPL(crest, CUDA, m) { m.impl(op, TORCH_BOX(&sparse_linear)); }
#endif

}  // namespace
}  // namespace crest
