#include "truncated_svd.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "check.h"
#include "gram_eigen.h"
#include "work.h"

namespace crest {
namespace {

constexpr const char* op = "truncated_svd";

using Factors = std::tuple<Tensor, Tensor, Tensor>;

Factors truncated_svd(const Tensor& a, int64_t k) {
  CREST_CHECK(a.dim() >= 2, op, ": a must have at least 2 dimensions, got ", Shape{a});
  const int64_t r = a.size(-2), c = a.size(-1);
  CREST_CHECK(k >= 0 && k <= std::min(r, c), op, ": rank must be in [0, ", std::min(r, c), "], got ", k);
  const Dtype dtype = check_floating(op, "a", a);
  CREST_CHECK(dtype == Dtype::float32 || dtype == Dtype::float64, op, ": a must be float32 or float64, got ", Type{a});

  std::vector<int64_t> shape(a.sizes().begin(), a.sizes().end() - 2);
  const auto with = [&](std::initializer_list<int64_t> last) {
    std::vector<int64_t> sizes = shape;
    sizes.insert(sizes.end(), last);
    return torch::stable::new_empty(a, sizes);
  };
  const Tensor u = with({r, k}), s = with({k}), vh = with({k, c});
  if (k == 0 || a.numel() == 0) return {u, s, vh};
  const Tensor all = torch::stable::contiguous(a);
  const int64_t n = a.numel() / (r * c);
  std::vector<Search> state(static_cast<size_t>(n));
  TruncatedSvd args{all.const_data_ptr(),
                    u.mutable_data_ptr(),
                    s.mutable_data_ptr(),
                    vh.mutable_data_ptr(),
                    nullptr,
                    state.data(),
                    n,
                    r,
                    c,
                    k,
                    dtype};
  const auto kernel = CREST_KERNEL(truncated_svd);
  torch::stable::parallel_for(
      0, n, 1, [&](int64_t begin, int64_t end) { kernel(args, Work(search_work(r, c, k)).data(), begin, end); });
  CREST_CHECK(std::find(state.begin(), state.end(), Search::not_finite) == state.end(), op,
              ": a must be finite, got NaN or infinity");

  for (int64_t i = 0; i < n; ++i) {
    if (state[static_cast<size_t>(i)] == Search::found) continue;
    const Tensor matrices = torch::stable::view(all, {n, r, c});
    const Tensor basis = gram_eigen(torch::stable::select(matrices, 0, i)).last(k, a);
    args.basis = basis.const_data_ptr();
    kernel(args, Work(search_work(r, c, k)).data(), i, i + 1);
  }
  return {u, s, vh};
}

STABLE_TORCH_LIBRARY_IMPL(crest, CPU, m) { m.impl(op, TORCH_BOX(&truncated_svd)); }

}  // namespace
}  // namespace crest
