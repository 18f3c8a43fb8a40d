#pragma once
// The few ops of torch itself that ours call, through the stable ABI.
#include <torch/csrc/stable/ops.h>

#include <array>
#include <string>
#include <utility>

#include "check.h"

namespace crest::aten {

template <size_t n>
void call(const char* op, const char* overload, std::array<StableIValue, n> stack) {
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(op, overload, stack.data(), TORCH_ABI_VERSION));
  torch::stable::detail::to<Tensor>(stack[0]);  // the result is `out` again: give the handle back
}

inline Tensor rows(Tensor t, int64_t first, int64_t count) { return torch::stable::narrow(t, 0, first, count); }

// out = x weight^T + bias
inline void linear(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& out) {
  using torch::stable::detail::from;
  call<4>("aten::linear", "out", {from(x), from(weight), from(bias), from(out)});
}

// out = a b
inline void mm(const Tensor& a, const Tensor& b, const Tensor& out) {
  using torch::stable::detail::from;
  call<3>("aten::mm", "out", {from(a), from(b), from(out)});
}

// The eigenvalues of a symmetric matrix, in ascending order, and their vectors as columns.
inline std::pair<Tensor, Tensor> eigh(const Tensor& symmetric) {
  using torch::stable::detail::from;
  std::array<StableIValue, 3> stack = {from(symmetric), from(std::string("L")), from(true)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::_linalg_eigh", "", stack.data(), TORCH_ABI_VERSION));
  return {torch::stable::detail::to<Tensor>(stack[0]), torch::stable::detail::to<Tensor>(stack[1])};
}

}  // namespace crest::aten
