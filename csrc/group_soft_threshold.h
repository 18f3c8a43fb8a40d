#pragma once
// group_soft_threshold_ and sparse_group_soft_threshold_: the proximal operators of the (sparse) group lasso, in place
#include "dtype.h"
#include "groups.h"
#include "isa.h"

namespace crest {

struct GroupSoftThreshold {
  void* weight;  // (outer, count, inner), written
  void* sums;    // (blocks, count, inner), of the type sums are kept in; see the kernels for who needs it
  Groups groups;
  double threshold, l1;
  Dtype dtype;  // of weight
};

// outer 1: shrinks groups [begin, end), each in two passes over a run that its cache may hold.
CREST_DECLARE_KERNEL(group_soft_threshold, const GroupSoftThreshold&, int64_t begin, int64_t end)

// Else, one after the other: sums of blocks [begin, end); the factor of each column in sums[0]; rows [begin, end).
CREST_DECLARE_KERNEL(group_soft_threshold_sums, const GroupSoftThreshold&, int64_t begin, int64_t end)
CREST_DECLARE_KERNEL(group_soft_threshold_factors, const GroupSoftThreshold&)
CREST_DECLARE_KERNEL(group_soft_threshold_rows, const GroupSoftThreshold&, int64_t begin, int64_t end)

namespace cuda {
void group_soft_threshold(const GroupSoftThreshold&, void* stream);
}

}  // namespace crest
