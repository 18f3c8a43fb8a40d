#pragma once
// local_response_norm: y = x / (k + alpha / size * the sum over neighbouring channels of x^2)^(3/4)
#include <cstdint>

#include "isa.h"

namespace crest {

struct LocalResponseNorm {
  const float* x;  // (n, c, positions)
  float* y;        // as x
  int64_t n, c, positions;
  int64_t before, after;  // channels that count on each side
  float scale, k;         // alpha / size

  static constexpr int64_t block = 512;  // positions: so much of a few channels stays in the first level of cache
  int64_t blocks() const { return (positions + block - 1) / block; }
};

// Computes the blocks [begin, end) of n * blocks().
CREST_DECLARE_KERNEL(local_response_norm, const LocalResponseNorm&, int64_t begin, int64_t end)

namespace cuda {
void local_response_norm(const LocalResponseNorm&, void* stream);
}

}  // namespace crest
