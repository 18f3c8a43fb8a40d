#include "truncated_svd.cuh"

namespace crest::cuda {

void truncated_svd(const TruncatedSvd& a, void* stream) {
  a.dtype == Dtype::float32 ? truncated_svd<float>(a, stream) : truncated_svd<double>(a, stream);
}

}  // namespace crest::cuda
