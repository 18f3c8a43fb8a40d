#include "separable_conv2d.cuh"

namespace crest::cuda {

void separable_conv2d(const SeparableConv2d& a, void* stream) { separable_conv2d<>(a, stream); }

}  // namespace crest::cuda
