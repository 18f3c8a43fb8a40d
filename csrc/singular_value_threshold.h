#pragma once
// singular_value_threshold: matrices with their singular values moved towards zero
#include "truncated_svd.h"

namespace crest {

struct SingularValueThreshold {
  const void* a;      // (n, r, c)
  void* out;          // (n, r, c)
  const void* basis;  // (min(r, c), most): the vectors of the shorter side, of one matrix; null: to be found
  Search* state;      // (n,), written
  double threshold;
  int64_t n, r, c;
  int64_t most;  // values above the threshold that there is room for, or in the basis
  Dtype dtype;   // of a, out and basis: float32 or float64
};

// Matrices [begin, end), one after the other in the same working memory, of search_work(r, c, most).
CREST_DECLARE_KERNEL(singular_value_threshold, const SingularValueThreshold&, double* work, int64_t begin, int64_t end)

}  // namespace crest
