#include "masked_linear_grad_x.cuh"

namespace crest::cuda {

void masked_linear_grad_x(const MaskedLinearGradX& a, void* stream) {
  dispatch(a.dtype, [&](auto type) { masked_linear_grad_x<typename decltype(type)::type>(a, stream); });
}

}  // namespace crest::cuda
