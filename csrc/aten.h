#pragma once
// The few ops of torch itself that ours call, through the stable ABI.
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "check.h"

namespace crest::aten {

template <size_t n>
void call(const char* op, const char* overload, std::array<StableIValue, n> stack) {
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(op, overload, stack.data(), TORCH_ABI_VERSION));
  torch::stable::detail::to<Tensor>(stack[0]);  // the result is `out` again: give the handle back
}

// An uninitialised tensor of the dtype and on the device of another. torch::stable::new_empty and empty look their ops
// up by name, which takes as long as a small layer.
inline Tensor empty(const Tensor& like, torch::headeronly::IntHeaderOnlyArrayRef sizes,
                    torch::headeronly::IntHeaderOnlyArrayRef strides) {
  int32_t dtype, device, index;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &dtype));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &index));
  AtenTensorHandle made;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(),
                                                  dtype, device, index, &made));
  return Tensor(made);
}

// The same, contiguous.
inline Tensor empty(const Tensor& like, torch::headeronly::IntHeaderOnlyArrayRef sizes) {
  std::vector<int64_t> strides(sizes.size());
  int64_t stride = 1;
  for (size_t i = sizes.size(); i-- > 0; stride *= std::max<int64_t>(sizes[i], 1)) strides[i] = stride;
  return empty(like, sizes, strides);
}

inline Tensor rows(Tensor t, int64_t first, int64_t count) { return torch::stable::narrow(t, 0, first, count); }

// Each step-th of a dimension.
inline Tensor every(const Tensor& x, int64_t dim, int64_t step) {
  using torch::stable::detail::from;
  const std::optional<int64_t> none;
  std::array<StableIValue, 5> stack = {from(x), from(dim), from(none), from(none), from(step)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::slice", "Tensor", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

inline Tensor relu(const Tensor& x) {
  std::array<StableIValue, 1> stack = {torch::stable::detail::from(x)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::relu", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// Of each channel of images.
inline Tensor mean(const Tensor& x, bool keep_dims) {
  using torch::stable::detail::from;
  const std::vector<int64_t> dims = {2, 3};
  std::array<StableIValue, 4> stack = {from(x), from(std::optional(torch::headeronly::IntHeaderOnlyArrayRef(dims))),
                                       from(keep_dims), from(std::optional<ScalarType>())};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mean", "dim", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

inline Tensor abs(const Tensor& x) {
  std::array<StableIValue, 1> stack = {torch::stable::detail::from(x)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::abs", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// The largest |number|, a 0-dimensional tensor.
inline Tensor largest(const Tensor& x) {
  std::array<StableIValue, 1> stack = {torch::stable::detail::from(abs(x))};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::max", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

inline Tensor pointwise(const char* op, const Tensor& a, const Tensor& b) {
  using torch::stable::detail::from;
  std::array<StableIValue, 2> stack = {from(a), from(b)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(op, "Tensor", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

inline Tensor divide(const Tensor& a, const Tensor& b) { return pointwise("aten::div", a, b); }
inline Tensor multiply(const Tensor& a, const Tensor& b) { return pointwise("aten::mul", a, b); }
inline Tensor clamp_min(const Tensor& a, const Tensor& b) { return pointwise("aten::clamp_min", a, b); }

// x weight^T + bias
inline Tensor linear(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
  using torch::stable::detail::from;
  std::array<StableIValue, 3> stack = {from(x), from(weight), from(bias)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::linear", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

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

// U (..., r, q), S (..., q) and Vh (..., q, c) of a (..., r, c), q = min(r, c).
inline std::tuple<Tensor, Tensor, Tensor> svd(const Tensor& a) {
  using torch::stable::detail::from;
  std::array<StableIValue, 4> stack = {from(a), from(false), from(true), from(std::optional<std::string>())};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::_linalg_svd", "", stack.data(), TORCH_ABI_VERSION));
  using torch::stable::detail::to;
  return {to<Tensor>(stack[0]), to<Tensor>(stack[1]), to<Tensor>(stack[2])};
}

}  // namespace crest::aten
