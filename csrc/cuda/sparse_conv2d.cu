#include "sparse_conv2d.cuh"

namespace crest::cuda {

void sparse_conv2d(const SparseConv2d& a, void* stream) {
  dispatch(a.dtype, [&](auto type) { sparse_conv2d<typename decltype(type)::type>(a, stream); });
}

}  // namespace crest::cuda
