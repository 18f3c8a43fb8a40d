#include "sgd_prune_splice.cuh"

namespace crest::cuda {

void sgd_prune_splice(const SgdPruneSplice& a, void* stream) {
  dispatch(a.dtype, [&](auto type) { sgd_prune_splice<typename decltype(type)::type>(a, stream); });
}

}  // namespace crest::cuda
