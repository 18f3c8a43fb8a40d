#include "singular_value_threshold.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "aten.h"
#include "check.h"
#include "gram_eigen.h"
#include "work.h"

namespace crest {
namespace {

constexpr const char* op = "singular_value_threshold";

Tensor singular_value_threshold(const Tensor& a, double threshold) {
  CREST_CHECK(a.dim() >= 2, op, ": a must have at least 2 dimensions, got ", Shape{a});
  const Dtype dtype = check_floating(op, "a", a);
  CREST_CHECK(dtype == Dtype::float32 || dtype == Dtype::float64, op, ": a must be float32 or float64, got ", Type{a});
  CREST_CHECK(std::isfinite(threshold) && threshold >= 0, op, ": threshold must be a finite number >= 0, got ",
              threshold);

  const Tensor all = torch::stable::contiguous(a);
  Tensor out = aten::empty(all, all.sizes());
  if (a.numel() == 0) return out;
  const int64_t r = a.size(-2), c = a.size(-1), n = a.numel() / (r * c), q = std::min(r, c);
  std::vector<Search> state(static_cast<size_t>(n));
  SingularValueThreshold args{all.const_data_ptr(),
                              out.mutable_data_ptr(),
                              nullptr,
                              state.data(),
                              threshold,
                              n,
                              r,
                              c,
                              q <= small_side ? q : q / 6,
                              dtype};
  const auto kernel = CREST_KERNEL(singular_value_threshold);
  torch::stable::parallel_for(0, n, 1, [&](int64_t begin, int64_t end) {
    kernel(args, Work(search_work(r, c, args.most)).data(), begin, end);
  });
  CREST_CHECK(std::find(state.begin(), state.end(), Search::not_finite) == state.end(), op,
              ": a must be finite, got NaN or infinity");

  for (int64_t i = 0; i < n; ++i) {
    if (state[static_cast<size_t>(i)] == Search::found) continue;
    GramEigen eigen = gram_eigen(torch::stable::select(torch::stable::view(all, {n, r, c}), 0, i));
    const double* values = static_cast<const double*>(eigen.values.const_data_ptr());
    const double least = eigen.largest > 0 ? threshold / eigen.largest : threshold;
    args.most = values + q - std::upper_bound(values, values + q, least * least);
    const Tensor basis = eigen.last(args.most, a);
    args.basis = basis.const_data_ptr();
    kernel(args, Work(search_work(r, c, args.most)).data(), i, i + 1);
  }
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(crest, CPU, m) { m.impl(op, TORCH_BOX(&singular_value_threshold)); }

}  // namespace
}  // namespace crest
