#include "masked_linear_grad_weight.cuh"

namespace crest::cuda {

void masked_linear_grad_weight(const MaskedLinearGradWeight& a, void* stream) {
  dispatch(a.dtype, [&](auto type) { masked_linear_grad_weight<typename decltype(type)::type>(a, stream); });
}

}  // namespace crest::cuda
