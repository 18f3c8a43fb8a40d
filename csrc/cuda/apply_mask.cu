#include "apply_mask.cuh"

namespace crest::cuda {

void apply_mask(const ApplyMask& a, void* stream) {
  dispatch(a.dtype, [&](auto type) { apply_mask<typename decltype(type)::type>(a, stream); });
}

}  // namespace crest::cuda
