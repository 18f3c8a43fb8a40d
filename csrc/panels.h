#pragma once
// Panels: a matrix (n, k) cut into blocks of columns, each stored feature-major, so that one kept weight meets all
// columns of a block in consecutive memory. CPU scratch only, always of the type sums are kept in.
//
// Panel p holds rows [p c, p c + width) of the matrix as (k, width), where c = 256 bytes of numbers. The last panel
// is 64, 128 or 256 bytes wide; columns beyond n are zero.
#include "dtype.h"
#include "isa.h"

namespace crest {

constexpr int64_t panel_bytes = 256, narrowest_panel_bytes = 64;

// The kernels for few rows make one pass over weight and mask, with no panels. They take up to this many.
constexpr int64_t few_rows = 32;

struct Panels {
  void* data;
  int64_t n, k;
};

struct Pack {
  const void* matrix;  // (n, k)
  Panels panels;       // written
  Dtype dtype;         // of matrix
};

struct Unpack {
  Panels panels;
  void* matrix;  // (n, k), written
  Dtype dtype;   // of matrix
};

// Both do features [begin, end) of k.
CREST_DECLARE_KERNEL(pack, const Pack&, int64_t begin, int64_t end)
CREST_DECLARE_KERNEL(unpack, const Unpack&, int64_t begin, int64_t end)

}  // namespace crest
