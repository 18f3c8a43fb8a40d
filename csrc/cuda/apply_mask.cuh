#pragma once
#include "../apply_mask.h"
#include "elementwise.cuh"

namespace crest::cuda {

template <class T>
struct ApplyMaskTo {
  const T* weight;
  const bool* mask;
  T* y;

  template <int width>
  bool packs() const {
    return aligned<width>(weight) && aligned<width>(mask) && aligned<width>(y);
  }

  template <int width>
  __device__ void apply(int64_t i) const {
    auto x = load<width>(weight + i);
    const auto keep = load<width>(mask + i);
    for (int j = 0; j < width; ++j)
      if (!keep.v[j]) narrow(0, x.v[j]);
    store(y + i, x);
  }
};

template <class T, int threads = elementwise_threads>
void apply_mask(const ApplyMask& a, void* stream, int64_t max_blocks = elementwise_blocks) {
  const ApplyMaskTo<T> op{static_cast<const T*>(a.weight), a.mask, static_cast<T*>(a.y)};
  elementwise<T, threads>("apply_mask", op, a.n, stream, max_blocks);
}

}  // namespace crest::cuda
