#pragma once
// What the search for singular vectors falls back on: torch's decomposition of the whole Gram matrix, in float64.
#include "aten.h"

namespace crest {

struct GramEigen {
  Tensor values;   // (min(r, c),), ascending: squares of the singular values, of a / largest
  Tensor vectors;  // columns; float64
  double largest;  // |number| of a: its square may be beyond float64

  // The vectors of the k largest values, (min(r, c), k) in the dtype of `like`.
  Tensor last(int64_t k, const Tensor& like) {
    const Tensor some = torch::stable::narrow(vectors, 1, vectors.size(1) - k, k);
    return torch::stable::contiguous(torch::stable::to(some, like.scalar_type()));
  }
};

// Of the shorter side of a (r, c).
inline GramEigen gram_eigen(const Tensor& a) {
  Tensor wide = torch::stable::to(a, ScalarType::Double);
  const Tensor most = aten::largest(wide);
  const double largest = *static_cast<const double*>(most.const_data_ptr());
  if (largest > 0) wide = aten::divide(wide, most);
  const Tensor turned = torch::stable::transpose(wide, 0, 1);
  const bool by_rows = a.size(0) < a.size(1);
  auto [values, vectors] = aten::eigh(torch::stable::matmul(by_rows ? wide : turned, by_rows ? turned : wide));
  return {values, vectors, largest};
}

}  // namespace crest
