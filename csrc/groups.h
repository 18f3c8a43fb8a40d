#pragma once
// Groups of weights, without torch: what group_norms and group_soft_threshold_ reduce over.
#include <cstdint>

namespace crest {

// A contiguous weight seen as (outer, count, inner): group g is weight[:, g, :]. With outer 1 a group is one run of
// memory. Otherwise the squares are summed over outer first, for each of the width() numbers of a row, in blocks of
// rows(): threads share out the blocks, and however many there are, the sums are the same.
// Kernels that call them must not emit them: other instruction sets have the same name.
struct Groups {
  int64_t outer, count, inner;

  int64_t width() const { return count * inner; }
  __attribute__((always_inline)) int64_t rows() const {
    const int64_t share = (outer + 31) / 32, worth = (int64_t{1} << 15) / (width() + 1), least = 16;
    return share > worth ? (share > least ? share : least) : (worth > least ? worth : least);
  }
  __attribute__((always_inline)) int64_t blocks() const { return outer > rows() ? (outer + rows() - 1) / rows() : 1; }

  // What a GPU keeps in a block: a sum for each group that is a run, else for each number of a row.
  int64_t cells_of_group() const { return outer == 1 ? 1 : inner; }
  int64_t cells() const { return count * cells_of_group(); }
};

}  // namespace crest
