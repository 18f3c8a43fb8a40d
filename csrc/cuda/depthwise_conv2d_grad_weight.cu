#include "depthwise_conv2d_grad_weight.cuh"

namespace crest::cuda {

void depthwise_conv2d_grad_weight(const DepthwiseConv2dGradWeight& a, void* stream) {
  dispatch(a.dtype, [&](auto type) { depthwise_conv2d_grad_weight<typename decltype(type)::type>(a, stream); });
}

}  // namespace crest::cuda
