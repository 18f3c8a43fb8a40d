#include "local_response_norm.cuh"

namespace crest::cuda {

void local_response_norm(const LocalResponseNorm& a, void* stream) { local_response_norm<>(a, stream); }

}  // namespace crest::cuda
