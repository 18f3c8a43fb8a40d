#include "max_pool2d.cuh"

namespace crest::cuda {

void max_pool2d(const MaxPool2d& a, void* stream) { max_pool2d<>(a, stream); }

}  // namespace crest::cuda
