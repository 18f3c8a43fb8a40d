#pragma once
// masked_linear: y = x (weight where mask)^T + bias
#include "dtype.h"
#include "isa.h"
#include "panels.h"

namespace crest {

struct MaskedLinear {
  const void* x;       // (n, k)
  const void* weight;  // (m, k)
  const bool* mask;    // (m, k)
  const void* bias;    // (m,), or nullptr
  void* y;             // (n, m)
  int64_t n, m, k;
  Dtype dtype;  // of x, weight, bias and y
};

// y[:, begin:end], each weight and its mask read once for eight rows of x: for few rows.
CREST_DECLARE_KERNEL(masked_linear_few, const MaskedLinear&, int64_t begin, int64_t end)
// y[:, begin:end] from x as panels: time goes with the kept weights.
CREST_DECLARE_KERNEL(masked_linear_sparse, const MaskedLinear&, const Panels& x, int64_t begin, int64_t end)

namespace cuda {
void masked_linear(const MaskedLinear&, void* stream);
}

}  // namespace crest
