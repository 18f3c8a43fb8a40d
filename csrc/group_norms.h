#pragma once
// group_norms: norms[g] = the Euclidean norm of group g of weight
#include "dtype.h"
#include "groups.h"
#include "isa.h"

namespace crest {

struct GroupNorms {
  const void* weight;  // (outer, count, inner)
  void* norms;         // (count,)
  void* sums;          // (blocks, count, inner), of the type sums are kept in; see the kernels for who needs it
  Groups groups;
  Dtype dtype;  // of weight and norms
};

// outer 1: computes norms[begin, end).
CREST_DECLARE_KERNEL(group_norms, const GroupNorms&, int64_t begin, int64_t end)

// Else first this, for each block, and then that, once.
CREST_DECLARE_KERNEL(group_norms_sums, const GroupNorms&, int64_t begin, int64_t end)
CREST_DECLARE_KERNEL(group_norms_of_sums, const GroupNorms&)

namespace cuda {
void group_norms(const GroupNorms&, void* stream);
}

}  // namespace crest
