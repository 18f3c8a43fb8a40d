#include "masked_linear.cuh"

namespace crest::cuda {

void masked_linear(const MaskedLinear& a, void* stream) {
  dispatch(a.dtype, [&](auto type) { masked_linear<typename decltype(type)::type>(a, stream); });
}

}  // namespace crest::cuda
