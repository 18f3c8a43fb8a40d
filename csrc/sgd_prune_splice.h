#pragma once
// sgd_prune_splice_: one step of SGD with momentum and weight decay, then prune_splice_, in one pass over memory
#include "dtype.h"
#include "isa.h"

namespace crest {

struct SgdPruneSplice {
  void* weight;           // (n,), written
  const void* grad;       // (n,)
  void* momentum_buffer;  // (n,), written
  bool* mask;             // (n,), written if update_mask
  int64_t n;
  double lr, momentum, weight_decay, low, high;
  bool update_mask;
  Dtype dtype;  // of weight, grad and momentum_buffer
};

// Updates [begin, end).
CREST_DECLARE_KERNEL(sgd_prune_splice, const SgdPruneSplice&, int64_t begin, int64_t end)

namespace cuda {
void sgd_prune_splice(const SgdPruneSplice&, void* stream);
}

}  // namespace crest
