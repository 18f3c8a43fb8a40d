#include "depthwise_conv2d.cuh"

namespace crest::cuda {

void depthwise_conv2d(const DepthwiseConv2d& a, void* stream) {
  dispatch(a.dtype, [&](auto type) { depthwise_conv2d<typename decltype(type)::type>(a, stream); });
}

}  // namespace crest::cuda
