#pragma once
// apply_mask: y = weight where mask, else 0
#include "dtype.h"
#include "isa.h"

namespace crest {

struct ApplyMask {
  const void* weight;  // (n,)
  const bool* mask;    // (n,)
  void* y;             // (n,)
  int64_t n;
  Dtype dtype;  // of weight and y
};

// Computes y[begin, end).
CREST_DECLARE_KERNEL(apply_mask, const ApplyMask&, int64_t begin, int64_t end)

namespace cuda {
void apply_mask(const ApplyMask&, void* stream);
}

}  // namespace crest
