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

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Tiles that a plane of so many registers is cut into: few, as a non-zero costs each of them loads besides, of where it
// is and its value, but as many as keep what the columns of one tile of the weight touch of x in cache.
inline int64_t tiles_of(const SparseConv2d& a, const ConvPlanes& p, int64_t registers) {
  const int64_t columns = min(a.c / a.groups * a.kh * a.kw, tile_of_filter);
  const int64_t planes = min(a.c / a.groups, tile_of_filter / (a.kh * a.kw) + 1) * p.phases[0] * p.phases[1];
  int64_t most = most_sums;
  while (most > least_sums && min(columns * most, planes * (most + p.halo)) * register_bytes > cached_bytes) --most;
  return ceil_div(registers, most);
}

}  // namespace crest::CREST_ISA
