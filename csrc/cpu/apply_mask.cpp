#include "../apply_mask.h"

#include "vec.h"

namespace crest::CREST_ISA {

void apply_mask(const ApplyMask& a, int64_t begin, int64_t end) {
  dispatch(a.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const T* weight = static_cast<const T*>(a.weight);
    const bool* mask = a.mask;
    T* y = static_cast<T*>(a.y);
    for_each_register<Acc<T>>(begin, end, [&](auto v, int64_t i) {
      prefetch(weight + i);
      decltype(v)::load(weight + i).where(mask + i).store(y + i);
    });
  });
}

}  // namespace crest::CREST_ISA
