#include "group_norms.cuh"

namespace crest::cuda {

void group_norms(const GroupNorms& a, void* stream) {
  dispatch(a.dtype, [&](auto type) { group_norms<typename decltype(type)::type>(a, stream); });
}

}  // namespace crest::cuda
