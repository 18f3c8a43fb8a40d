#include "truncated_svd.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <tuple>
#include <vector>

#include "aten.h"
#include "check.h"
#include "cuda_device.h"
#include "gram_eigen.h"
#include "work.h"

namespace crest {
namespace {

constexpr const char* op = "truncated_svd";

using Factors = std::tuple<Tensor, Tensor, Tensor>;

void check_finite(bool finite) { CREST_CHECK(finite, op, ": a must be finite, got NaN or infinity"); }

template <auto run>
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
  const TruncatedSvd args{all.const_data_ptr(),
                          u.mutable_data_ptr(),
                          s.mutable_data_ptr(),
                          vh.mutable_data_ptr(),
                          nullptr,
                          nullptr,
                          a.numel() / (r * c),
                          r,
                          c,
                          k,
                          dtype};
  run(args, all, {u, s, vh});
  return {u, s, vh};
}

void on_cpu(TruncatedSvd args, const Tensor& a, const Factors&) {
  const int64_t n = args.n, r = args.r, c = args.c, k = args.k;
  std::vector<Search> state(static_cast<size_t>(n));
  args.state = state.data();
  const auto kernel = CREST_KERNEL(truncated_svd);
  torch::stable::parallel_for(
      0, n, 1, [&](int64_t begin, int64_t end) { kernel(args, Work(search_work(r, c, k)).data(), begin, end); });
  check_finite(std::find(state.begin(), state.end(), Search::not_finite) == state.end());

  for (int64_t i = 0; i < n; ++i) {
    if (state[static_cast<size_t>(i)] == Search::found) continue;
    const Tensor matrices = torch::stable::view(a, {n, r, c});
    const Tensor basis = gram_eigen(torch::stable::select(matrices, 0, i)).last(k, a);
    args.basis = basis.const_data_ptr();
    kernel(args, Work(search_work(r, c, k)).data(), i, i + 1);
  }
}

STABLE_TORCH_LIBRARY_IMPL(crest, CPU, m) { m.impl(op, TORCH_BOX(&truncated_svd<on_cpu>)); }

#ifdef CREST_CUDA
Tensor to_cpu(const Tensor& t) {
  return torch::stable::to(t, torch::stable::Device(torch::headeronly::DeviceType::CPU));
}

// Whether the kernel found all factors; of a few matrices in a batch that it did not, torch does the whole batch.
bool by_jacobi(TruncatedSvd args, const Tensor& a, void* stream) {
  const int64_t n = args.n, numbers = svd_numbers(args.r, args.c);
  const int64_t blocks = numbers > svd_shared(args.dtype) ? svd_blocks(n, args.r, args.c) : 0;
  const Tensor work = aten::empty(a, {blocks * numbers}), state = torch::stable::new_empty(a, {n}, ScalarType::Char);
  args.work = work.mutable_data_ptr();
  args.state = static_cast<Search*>(state.mutable_data_ptr());
  cuda::truncated_svd(args, stream);
  const Tensor here = to_cpu(state);
  const Search* begin = static_cast<const Search*>(here.const_data_ptr());
  check_finite(std::find(begin, begin + n, Search::not_finite) == begin + n);
  return std::find(begin, begin + n, Search::not_found) == begin + n;
}

// Of each matrix over its largest number: squares may be beyond the dtype.
Factors by_torch(const Tensor& a, Dtype dtype) {
  Tensor least = torch::stable::new_empty(a, {1});
  torch::stable::fill_(least, dtype == Dtype::float32 ? FLT_MIN : DBL_MIN);
  const int64_t sides[] = {-2, -1};
  const Tensor largest = aten::clamp_min(torch::stable::amax(aten::abs(a), sides, true), least);
  const Tensor here = to_cpu(torch::stable::to(aten::largest(largest), ScalarType::Double));
  check_finite(std::isfinite(*static_cast<const double*>(here.const_data_ptr())));
  const auto [u, s, vh] = aten::svd(aten::divide(a, largest));
  return {u, aten::multiply(s, torch::stable::squeeze(largest, -1)), vh};
}

void on_cuda(const TruncatedSvd& args, const Tensor& a, const Factors& factors) {
  const CudaDevice device(a);
  const bool small = std::min(args.r, args.c) <= svd_short && std::max(args.r, args.c) <= svd_long;
  if (small && by_jacobi(args, a, device.stream())) return;
  auto [u, s, vh] = by_torch(a, args.dtype);
  auto [to_u, to_s, to_vh] = factors;
  torch::stable::copy_(to_u, torch::stable::narrow(u, -1, 0, args.k));
  torch::stable::copy_(to_s, torch::stable::narrow(s, -1, 0, args.k));
  torch::stable::copy_(to_vh, torch::stable::narrow(vh, -2, 0, args.k));
}

STABLE_TORCH_LIBRARY_IMPL(crest, CUDA, m) { m.impl(op, TORCH_BOX(&truncated_svd<on_cuda>)); }
#endif

}  // namespace
}  // namespace crest
