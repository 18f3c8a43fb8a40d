#include "local_response_norm.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "aten.h"
#include "check.h"
#include "cuda_device.h"

namespace crest {
namespace {

constexpr const char* op = "local_response_norm";

template <auto run>
Tensor local_response_norm(const Tensor& x, int64_t size, double alpha, double beta, double k) {
  CREST_CHECK(x.dim() >= 3, op, ": x must have at least 3 dimensions, got ", Shape{x});
  CREST_CHECK(x.scalar_type() == ScalarType::Float, op, ": x must be float32, got ", Type{x});
  CREST_CHECK(size > 0, op, ": size must be at least 1, got ", size);
  CREST_CHECK(beta == 0.75, op, ": beta must be 0.75, got ", beta);

  const Tensor in = torch::stable::contiguous(x);
  Tensor y = aten::empty(in, in.sizes());
  if (y.numel() == 0) return y;
  const int64_t n = x.size(0), c = x.size(1);
  run({in.const_data_ptr<float>(), y.mutable_data_ptr<float>(), n, c, y.numel() / (n * c), size / 2, (size - 1) / 2,
       static_cast<float>(alpha / static_cast<double>(size)), static_cast<float>(k)},
      y);
  return y;
}

void on_cpu(const LocalResponseNorm& a, const Tensor&) {
  const auto kernel = CREST_KERNEL(local_response_norm);
  torch::stable::parallel_for(0, a.n * a.blocks(), 1 + 32 / a.c,
                              [&](int64_t begin, int64_t end) { kernel(a, begin, end); });
}

STABLE_TORCH_LIBRARY_IMPL(crest, CPU, m) { m.impl(op, TORCH_BOX(&local_response_norm<on_cpu>)); }

#ifdef CREST_CUDA
void on_cuda(const LocalResponseNorm& a, const Tensor& y) { cuda::local_response_norm(a, CudaDevice(y).stream()); }

STABLE_TORCH_LIBRARY_IMPL(crest, CUDA, m) { m.impl(op, TORCH_BOX(&local_response_norm<on_cuda>)); }
#endif

}  // namespace
}  // namespace crest
