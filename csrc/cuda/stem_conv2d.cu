#include "stem_conv2d.cuh"

namespace crest::cuda {

void stem_conv2d(const StemConv2d& a, void* stream) { stem_conv2d<>(a, stream); }

}  // namespace crest::cuda
