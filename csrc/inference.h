#pragma once
// Ops as functions, for one that calls others; each runs where x is.
#include <optional>
#include <vector>

#include "check.h"
#include "text.h"

namespace crest {

using Ints = std::vector<int64_t>;

Tensor depthwise_conv2d(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, const Ints& stride,
                        const Ints& padding, const Ints& dilation, const Text& activation);
Tensor max_pool2d(const Tensor& x, const Ints& kernel, const Ints& stride, const Ints& padding, const Ints& dilation,
                  bool ceil_mode);
Tensor separable_conv2d(const Tensor& x, const Tensor& depthwise, const Tensor& pointwise, int64_t m,
                        const std::optional<Tensor>& depthwise_bias, const std::optional<Tensor>& bias,
                        const Ints& stride, const Ints& padding, const Ints& dilation, const Text& depthwise_activation,
                        const Text& activation);
Tensor sparse_conv2d(const Tensor& x, const Tensor& values, const Tensor& columns, const Tensor& starts,
                     const Ints& weight_shape, const std::optional<Tensor>& bias, const Ints& stride,
                     const Ints& padding, const Ints& dilation, int64_t groups, const Text& activation,
                     const std::optional<Tensor>& addend = std::nullopt);
Tensor sparse_linear(const Tensor& x, const Tensor& values, const Tensor& columns, const Tensor& rows,
                     const Tensor& steps, const Tensor& slices, int64_t m, int64_t k, const std::optional<Tensor>& bias,
                     const Text& activation);
Tensor stem_conv2d(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, const Ints& stride,
                   const Ints& padding, const Ints& dilation, const Text& activation, bool channels_last);

}  // namespace crest
