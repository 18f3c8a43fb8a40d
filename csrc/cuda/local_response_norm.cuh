#pragma once
#include "../local_response_norm.h"
#include "elementwise.cuh"

namespace crest::cuda {

struct LocalResponseNormTo {
  LocalResponseNorm a;

  template <int width>
  bool packs() const {
    return false;  // positions are seldom a multiple of anything, and the neighbours come from the cache
  }

  template <int>
  __device__ void apply(int64_t i) const {
    const int64_t c = i / a.positions % a.c;
    const int64_t before = c < a.before ? c : a.before, after = a.c - 1 - c < a.after ? a.c - 1 - c : a.after;
    float sum = 0;
    for (int64_t j = -before; j <= after; ++j) {
      const float value = a.x[i + j * a.positions];
      sum = value * value + sum;
    }
    const float root = sqrtf(a.scale * sum + a.k);
    a.y[i] = a.x[i] / (root * sqrtf(root));
  }
};

template <int threads = elementwise_threads>
void local_response_norm(const LocalResponseNorm& a, void* stream, int64_t max_blocks = elementwise_blocks) {
  elementwise<float, threads>("local_response_norm", LocalResponseNormTo{a}, a.n * a.c * a.positions, stream,
                              max_blocks);
}

}  // namespace crest::cuda
