#pragma once
#include "../sparse_conv2d.h"
#include "vec.h"

namespace crest::CREST_ISA {

// The registers of a tile: as many sums as fit in the register file beside a weight, and enough to hide their latency.
constexpr int64_t most_sums = register_count > 16 ? 26 : 12;
constexpr int64_t least_sums = 6;  // an fma takes four cycles, and two begin in each

constexpr int64_t cached_bytes = 56 << 10;  // of x that a tile may touch: what the first level of cache keeps most of

// Loads across cache lines that cost as much as to turn a register: 24 by AVX2, where every other load is across one.
// Of registers as long as a cache line, all are; on Intel, 12 to 24 measure alike.
constexpr int64_t loads_per_turn = register_bytes == 64 ? 12 : 24;

// The registers of a tile that meets as many planes as a tile of the weight has columns.
constexpr int64_t sums_of_many = min(max(cached_bytes / (tile_of_filter * register_bytes), least_sums), most_sums);

template <class V>
inline V relu(V y) {
  return {y.v < V::zero().v ? V::zero().v : y.v};  // a NaN stays
}

}  // namespace crest::CREST_ISA
