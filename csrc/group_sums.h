#pragma once
// Room for the sums of squares that group_norms and group_soft_threshold_ keep between their passes over a weight.
#include <torch/csrc/stable/ops.h>

#include "check.h"
#include "groups.h"

namespace crest {

// Of the type that the sums of a weight of this dtype are kept in.
inline Tensor new_group_sums(const Tensor& weight, int64_t size) {
  const bool wide = weight.scalar_type() == ScalarType::Double;
  return torch::stable::new_empty(weight, {size}, wide ? ScalarType::Double : ScalarType::Float);
}

}  // namespace crest
