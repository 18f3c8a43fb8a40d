#pragma once
#include "../sgd_prune_splice.h"
#include "elementwise.cuh"
#include "hysteresis.cuh"

namespace crest::cuda {

template <class T>
struct SgdPruneSpliceTo {
  using A = Acc<T>;
  T* weight;
  const T* grad;
  T* momentum_buffer;
  bool* mask;
  A lr, momentum, weight_decay, low, high;
  bool update_mask;

  template <int width>
  bool packs() const {
    return aligned<width>(weight) && aligned<width>(grad) && aligned<width>(momentum_buffer) && aligned<width>(mask);
  }

  template <int width>
  __device__ void apply(int64_t i) const {
    auto w = load<width>(weight + i);
    auto buffer = load<width>(momentum_buffer + i);
    const auto g = load<width>(grad + i);
    for (int j = 0; j < width; ++j) {
      const A before = widen(w.v[j]);
      narrow(momentum * widen(buffer.v[j]) + (widen(g.v[j]) + weight_decay * before), buffer.v[j]);
      narrow(before - lr * widen(buffer.v[j]), w.v[j]);
    }
    store(weight + i, w);
    store(momentum_buffer + i, buffer);
    if (!update_mask) return;
    // What is compared is what is stored, so that a later prune_splice_ agrees.
    auto keep = load<width>(mask + i);
    for (int j = 0; j < width; ++j) keep.v[j] = hysteresis(widen(w.v[j]), keep.v[j], low, high);
    store(mask + i, keep);
  }
};

template <class T, int threads = elementwise_threads>
void sgd_prune_splice(const SgdPruneSplice& a, void* stream, int64_t max_blocks = elementwise_blocks) {
  using A = Acc<T>;
  const SgdPruneSpliceTo<T> op{static_cast<T*>(a.weight),
                               static_cast<const T*>(a.grad),
                               static_cast<T*>(a.momentum_buffer),
                               a.mask,
                               A(a.lr),
                               A(a.momentum),
                               A(a.weight_decay),
                               A(a.low),
                               A(a.high),
                               a.update_mask};
  elementwise<T, threads>("sgd_prune_splice_", op, a.n, stream, max_blocks);
}

}  // namespace crest::cuda
