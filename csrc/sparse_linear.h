#pragma once
// sparse_linear: y = act(x weight^T + bias) for a weight (m, k) that was packed once.
//
// The packed weight. Its rows are cut into `blocks` of `block_rows` each (all of the same height, at most 256) and its
// columns into tiles of 128, so that a column within its tile, and a row within its block, is one byte. A tile of a
// block is a cell. A cell sorts its rows by their non-zeros, the most first, and takes sixteen neighbours at a time as
// a slice: sorted, they have about as many each, and little is padded. A slice is a list of steps; a step holds the
// next non-zero of each of its sixteen rows, so that one register of sums serves sixteen rows, and sixteen rows share
// one loop count. Slices without non-zeros are left out.
//
//   values   (steps, 16)   float32, bfloat16 or float16; 0 where a row has fewer non-zeros than its slice has steps
//   columns  (steps, 16)   uint8 within the tile; where the value is padding, a column that this row dropped
//   rows     (slices, 16)  uint8 within the block; no row twice in a cell
//   steps    (slices + 1)  int32: slice s has steps [steps[s], steps[s + 1])
//   slices   (cells + 1)   int32: cell c = block * tiles + tile has slices [slices[c], slices[c + 1])
//
// A non-zero takes 5 bytes (3 in half precision), and the rest less than one at 95 % zeros.
#include "activation.h"
#include "dtype.h"
#include "isa.h"

namespace crest {

constexpr int64_t slice_rows = 16, tile_columns = 128, most_block_rows = 256;

struct SparseLinear {
  const float* x;          // (n, k)
  const void* values;      // the packed weight, as above
  const uint8_t* columns;  // each below min(tile_columns, k - its tile's first)
  const uint8_t* rows;     // each below block_rows
  const int32_t* steps;
  const int32_t* slices;
  const float* bias;  // (m,), or nullptr
  float* y;           // (n, m)
  int64_t n, m, k, blocks, block_rows, tiles;
  Activation activation;
  Dtype dtype;  // of values
};

// Panels: x feature-major, so that one non-zero meets many rows of x in consecutive memory. Panel p holds rows
// [p c, p c + width) as (k, width); the last panel has 8, 16, 32 or 64; rows beyond n are zero. Each instruction set
// has its c, and none needs more room than one of 64.
constexpr int64_t widest_panel = 64, narrowest_panel = 8;

// Up to this many rows of x go without panels, one by one.
constexpr int64_t few_rows_of_x = 2;

// Both do the blocks whose first step is in [begin, end), so that threads share the non-zeros evenly.
CREST_DECLARE_KERNEL(sparse_linear_few, const SparseLinear&, int64_t begin, int64_t end)
CREST_DECLARE_KERNEL(sparse_linear_panels, const SparseLinear&, const float* panels, int64_t begin, int64_t end)
// Columns [begin, end) of x to panels.
CREST_DECLARE_KERNEL(sparse_linear_pack, const SparseLinear&, float* panels, int64_t begin, int64_t end)

namespace cuda {
void sparse_linear(const SparseLinear&, void* stream);
}

}  // namespace crest
