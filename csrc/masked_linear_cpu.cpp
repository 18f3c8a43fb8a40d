#include "masked_linear_cpu.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <vector>

#include "aten.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "apply_mask.h"

namespace crest {
namespace {

size_t size_of(Dtype dtype) { return dtype == Dtype::float64 ? 8 : dtype == Dtype::float32 ? 4 : 2; }

// How many floats a feature takes in all panels of n rows.
int64_t panel_row(int64_t n, Dtype dtype) {
  const int64_t bytes = n * (dtype == Dtype::float64 ? 8 : 4), rest = bytes % panel_bytes;
  int64_t last = rest ? narrowest_panel_bytes : 0;
  while (last < rest) last *= 2;
  return (bytes - rest + last) / 4;
}

}  // namespace

Tensor as_contiguous(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }

Tensor as_matrix(const Tensor& t) {
  if (t.dim() == 2) return as_contiguous(t);
  const int64_t k = t.size(-1);
  int64_t n = 1;
  for (int64_t i = 0; i + 1 < t.dim(); ++i) n *= t.size(i);
  return torch::stable::view(as_contiguous(t), {n, k});
}

Tensor new_with_last(const Tensor& t, int64_t size) {
  std::vector<int64_t> shape(t.sizes().begin(), t.sizes().end());
  shape.back() = size;
  return aten::empty(t, shape);
}

double density(const Tensor& mask) {
  constexpr int64_t run = 64, runs = 128;
  const bool* m = mask.const_data_ptr<bool>();
  const int64_t n = mask.numel();
  if (n <= run * runs) return static_cast<double>(std::count(m, m + n, true)) / static_cast<double>(n);
  int64_t kept = 0;
  uint64_t at = 0;
  for (int64_t i = 0; i < runs; ++i) {
    at += 0x9e3779b97f4a7c15;  // golden ratio: evenly spread, and in step with no pattern of rows or columns
    const bool* p = m + static_cast<int64_t>(static_cast<unsigned __int128>(at) * static_cast<uint64_t>(n - run) >> 64);
    kept += std::count(p, p + run, true);
  }
  return static_cast<double>(kept) / static_cast<double>(run * runs);
}

Regime choose(const Bounds& bounds, int64_t n, const Tensor& mask) {
  if (n <= bounds.always_few) return Regime::few;
  if (n <= few_rows) return density(mask) > bounds.few_or_sparse ? Regime::few : Regime::sparse;
  return density(mask) > bounds.sparse_or_dense ? Regime::dense : Regime::sparse;
}

PanelScratch::PanelScratch(int64_t n, int64_t features, Dtype dtype)
    : n_(n), row_(panel_row(n, dtype)), scratch_(row_ * features), next_(scratch_.data()) {}

Panels PanelScratch::take(int64_t k) {
  const Panels result{next_, n_, k};
  next_ += row_ * k;
  return result;
}

Panels PanelScratch::packed(const Tensor& matrix, Dtype dtype) {
  const Pack args{matrix.const_data_ptr(), take(matrix.size(1)), dtype};
  const auto kernel = CREST_KERNEL(pack);
  const int64_t grain = std::max<int64_t>(16, (1 << 15) / n_);
  torch::stable::parallel_for(0, args.panels.k, grain, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
  return args.panels;
}

void unpack(const Panels& panels, const Tensor& matrix, Dtype dtype) {
  const Unpack args{panels, matrix.mutable_data_ptr(), dtype};
  const auto kernel = CREST_KERNEL(unpack);
  const int64_t grain = std::max<int64_t>(16, (1 << 15) / panels.n);
  torch::stable::parallel_for(0, panels.k, grain, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

void apply_mask_block(const Tensor& weight, const Tensor& mask, Dtype dtype, int64_t row, int64_t column,
                      const Tensor& out) {
  const auto kernel = CREST_KERNEL(apply_mask);
  const int64_t rows = out.size(0), columns = out.size(1), k = weight.size(1), first = row * k + column;
  const size_t size = size_of(dtype);
  const char* w = static_cast<const char*>(weight.const_data_ptr()) + first * size;
  const bool* m = mask.const_data_ptr<bool>() + first;
  char* y = static_cast<char*>(out.mutable_data_ptr());
  torch::stable::parallel_for(0, rows, std::max<int64_t>(1, (1 << 15) / columns), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      kernel(ApplyMask{w + i * k * size, m + i * k, y + i * columns * size, columns, dtype}, 0, columns);
  });
}

void prefer_huge_pages([[maybe_unused]] const Tensor& t) {
#if defined(__linux__)
  constexpr uintptr_t page = 2 << 20;
  const auto first = reinterpret_cast<uintptr_t>(t.const_data_ptr());
  const uintptr_t begin = (first + page - 1) / page * page, end = (first + t.numel() * t.element_size()) / page * page;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

int64_t cached_rows(int64_t row_bytes) {
  return std::max<int64_t>(64, (int64_t{2} << 20) / std::max<int64_t>(row_bytes, 1));
}

}  // namespace crest
