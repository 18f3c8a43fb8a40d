#include "sparse_linear.cuh"

namespace crest::cuda {

void sparse_linear(const SparseLinear& a, void* stream) {
  dispatch(a.dtype, [&](auto type) { sparse_linear<typename decltype(type)::type>(a, stream); });
}

}  // namespace crest::cuda
