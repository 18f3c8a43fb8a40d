#include "../sgd_prune_splice.h"

#include "hysteresis.h"

namespace crest::CREST_ISA {

void sgd_prune_splice(const SgdPruneSplice& a, int64_t begin, int64_t end) {
  dispatch(a.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    using A = Acc<T>;
    T* weight = static_cast<T*>(a.weight);
    T* buffer = static_cast<T*>(a.momentum_buffer);
    const T* grad = static_cast<const T*>(a.grad);
    bool* mask = a.mask;
    const bool update_mask = a.update_mask;
    const A lr = A(a.lr), momentum = A(a.momentum), decay = A(a.weight_decay), low = A(a.low), high = A(a.high);
    for_each_register<A>(begin, end, [&](auto v, int64_t i) {
      using V = decltype(v);
      prefetch(weight + i), prefetch(grad + i), prefetch(buffer + i);
      const V w = V::load(weight + i);
      (V::all(momentum) * V::load(buffer + i) + (V::load(grad + i) + V::all(decay) * w)).store(buffer + i);
      // What is used next is what was stored, so that a later prune_splice_ agrees.
      (w - V::all(lr) * V::load(buffer + i)).store(weight + i);
      if (update_mask) hysteresis(V::load(weight + i), mask + i, low, high);
    });
  });
}

}  // namespace crest::CREST_ISA
