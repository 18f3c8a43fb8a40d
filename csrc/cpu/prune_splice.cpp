#include "../prune_splice.h"

#include "hysteresis.h"

namespace crest::CREST_ISA {

void prune_splice(const PruneSplice& a, int64_t begin, int64_t end) {
  dispatch(a.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    using A = Acc<T>;
    const T* weight = static_cast<const T*>(a.weight);
    bool* mask = a.mask;
    const A low = A(a.low), high = A(a.high);
    for_each_register<A>(begin, end, [&](auto v, int64_t i) {
      prefetch(weight + i);
      hysteresis(decltype(v)::load(weight + i), mask + i, low, high);
    });
  });
}

}  // namespace crest::CREST_ISA
