#pragma once
// masked_linear_grad_x: grad_x = grad (weight where mask)
#include "dtype.h"
#include "isa.h"
#include "panels.h"

namespace crest {

struct MaskedLinearGradX {
  const void* grad;    // (n, m)
  const void* weight;  // (m, k)
  const bool* mask;    // (m, k)
  void* grad_x;        // (n, k)
  int64_t n, m, k;
  Dtype dtype;  // of grad, weight and grad_x
};

// grad_x[:, begin:end]: for few rows of grad (n <= few_rows).
CREST_DECLARE_KERNEL(masked_linear_grad_x_few, const MaskedLinearGradX&, int64_t begin, int64_t end)
// grad_x[begin:end, :] from grad, both as panels.
CREST_DECLARE_KERNEL(masked_linear_grad_x_sparse, const MaskedLinearGradX&, const Panels& grad, const Panels& grad_x,
                     int64_t begin, int64_t end)

namespace cuda {
void masked_linear_grad_x(const MaskedLinearGradX&, void* stream);
}

}  // namespace crest
