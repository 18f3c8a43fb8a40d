#pragma once
#include "vec.h"

namespace crest::CREST_ISA {

// The registers of a tile: as many sums as fit in the register file beside a weight, and enough to hide their latency.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int64_t most_sums = 26;
#else
constexpr int64_t most_sums = 12;
#endif
constexpr int64_t least_sums = 6;  // an fma takes four cycles, and two begin in each

}  // namespace crest::CREST_ISA
