#include "group_soft_threshold.cuh"

namespace crest::cuda {

void group_soft_threshold(const GroupSoftThreshold& a, void* stream) {
  dispatch(a.dtype, [&](auto type) { group_soft_threshold<typename decltype(type)::type>(a, stream); });
}

}  // namespace crest::cuda
