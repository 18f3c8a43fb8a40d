#pragma once
// prune_splice_: drop a weight below `low`, restore it from `high` on, leave its mask alone between
#include "dtype.h"
#include "isa.h"

namespace crest {

struct PruneSplice {
  const void* weight;  // (n,)
  bool* mask;          // (n,), written
  int64_t n;
  double low, high;
  Dtype dtype;  // of weight
};

// Updates mask[begin, end).
CREST_DECLARE_KERNEL(prune_splice, const PruneSplice&, int64_t begin, int64_t end)

namespace cuda {
void prune_splice(const PruneSplice&, void* stream);
}

}  // namespace crest
