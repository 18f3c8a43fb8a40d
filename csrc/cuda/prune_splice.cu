#include "prune_splice.cuh"

namespace crest::cuda {

void prune_splice(const PruneSplice& a, void* stream) {
  dispatch(a.dtype, [&](auto type) { prune_splice<typename decltype(type)::type>(a, stream); });
}

}  // namespace crest::cuda
