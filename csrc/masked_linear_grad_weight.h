#pragma once
// masked_linear_grad_weight: grad_weight = grad^T x where mask, else 0; computed only where mask
#include "dtype.h"
#include "isa.h"
#include "panels.h"

namespace crest {

struct MaskedLinearGradWeight {
  const void* grad;   // (n, m)
  const void* x;      // (n, k)
  const bool* mask;   // (m, k)
  void* grad_weight;  // (m, k)
  int64_t n, m, k;
  Dtype dtype;  // of grad, x and grad_weight
};

// grad_weight[begin:end, :]: for few rows of grad and x.
CREST_DECLARE_KERNEL(masked_linear_grad_weight_few, const MaskedLinearGradWeight&, int64_t begin, int64_t end)
// grad_weight[begin:end, :] from grad and x as panels.
CREST_DECLARE_KERNEL(masked_linear_grad_weight_sparse, const MaskedLinearGradWeight&, const Panels& grad,
                     const Panels& x, int64_t begin, int64_t end)

namespace cuda {
void masked_linear_grad_weight(const MaskedLinearGradWeight&, void* stream);
}

}  // namespace crest
