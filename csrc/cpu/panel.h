#pragma once
// What the sparse kernels share: panels, and the kept weights of a block of rows and columns.
#include "../panels.h"
#include "compress.h"
#include "transpose.h"

namespace crest::CREST_ISA {

// A panel's row: A[width], which is `registers` registers. A kernel holds `held` of them at a time: no more than
// eight, so that the small register files of SSE2 and AVX2 suffice.
template <class A, int bytes>
struct PanelRow {
  static constexpr int width = bytes / static_cast<int>(sizeof(A)), registers = bytes / register_bytes;
  static constexpr int held = min(registers, 8);
};

template <class A>
constexpr int64_t full_panel = panel_bytes / static_cast<int64_t>(sizeof(A));

template <class A>
inline int64_t panel_count(const Panels& a) {
  return (a.n + full_panel<A> - 1) / full_panel<A>;
}

template <class A>
inline A* panel(const Panels& a, int64_t p) {
  return static_cast<A*>(a.data) + p * full_panel<A> * a.k;
}

// f(PanelRow{}) of panel p.
template <class A, class F>
inline void with_row(const Panels& a, int64_t p, const F& f) {
  const int64_t bytes = (a.n - p * full_panel<A>)*static_cast<int64_t>(sizeof(A));
  if (bytes > panel_bytes / 2) return f(PanelRow<A, panel_bytes>{});
  if (bytes > panel_bytes / 4) return f(PanelRow<A, panel_bytes / 2>{});
  return f(PanelRow<A, panel_bytes / 4>{});
}

// Features [begin, end) of panels [first, last) become zero.
template <class A>
inline void clear(const Panels& a, int64_t first, int64_t last, int64_t begin, int64_t end) {
  for (int64_t p = first; p < last; ++p)
    with_row<A>(a, p, [&](auto row) {
      std::memset(panel<A>(a, p) + begin * row.width, 0, (end - begin) * row.width * sizeof(A));
    });
}

// Features [begin, end) of panel p, plus bias, to the rows of matrix (n, stride) that it holds. Features go by the line
// of cache, lest each line of a matrix with rows a power of two apart leaves the cache before its second half comes.
template <class A, class T>
inline void unpack_panel(const Panels& a, int64_t p, int64_t begin, int64_t end, const T* bias, T* matrix,
                         int64_t stride) {
  using V = Vec<A>;
  constexpr int line = max<int>(64 / sizeof(T), V::width);
  const A* data = panel<A>(a, p);
  T* y = matrix + p * full_panel<A> * stride;
  with_row<A>(a, p, [&](auto features) {
    constexpr int width = features.width;
    const int rows = static_cast<int>(min<int64_t>(a.n - p * full_panel<A>, width));
    const int64_t whole = end - (end - begin) % V::width;
    for (int64_t j = begin; j < whole; j += line)
      for (int r = 0; r < rows; r += V::width)
        for (int64_t l = j; l < min(j + line, whole); l += V::width) {
          V square[V::width];
          for (int i = 0; i < V::width; ++i) square[i] = V::load(data + (l + i) * width + r);
          transpose(square);
          const V offset = bias ? V::load(bias + l) : V::zero();
          for (int i = 0; i < min(rows - r, V::width); ++i) (square[i] + offset).store(y + (r + i) * stride + l);
        }
    for (int64_t j = whole; j < end; ++j)
      for (int r = 0; r < rows; ++r) narrow(data[j * width + r] + (bias ? widen(bias[j]) : A{0}), y[r * stride + j]);
  });
}

// The kept weights of up to `rows` rows and `columns` columns, in the order they lie in memory, and their columns;
// cut along the columns into tiles, so that the part of a panel they meet stays in cache while all rows use it: in
// the first level, but where few registers make a row, ends of tiles cost more than the second.
template <class A>
struct Kept {
  static constexpr int rows = 64, tile = register_bytes == 64 ? 256 : 128, tiles = 512 / tile, columns = tile * tiles;
  // Segments are padded with zeros in column 0, for kernels that take several positions at once.
  static constexpr int most_padding = 4, most = rows * (columns + tiles * most_padding) + 16;

  A values[most];
  uint8_t index[most];
  struct {
    int begin, count;
  } segments[rows][tiles];

  struct Segment {
    A* values;
    uint8_t* index;
    int count;
  };
  Segment segment(int row, int t) {
    const auto [begin, count] = segments[row][t];
    return {values + begin, index + begin, count};
  }

  // From weight and mask (row_count, column_count) in matrices of k columns. `padding` is a power of two. Inlined, it
  // and the product would take registers from each other.
  template <class T>
  __attribute__((noinline)) void gather(const T* weight, const bool* mask, int64_t k, int row_count, int column_count,
                                        int padding) {
    int at = 0;
    for (int row = 0; row < row_count; ++row) {
      for (int t = 0; t * tile < column_count; ++t) {
        const int64_t first = row * k + t * tile;
        const int n = min(column_count - t * tile, tile);
        const int count = compress(weight + first, mask + first, n, k, values + at, index + at);
        segments[row][t] = {at, count};
        at += count;
        std::memset(values + at, 0, most_padding * sizeof(A));
        std::memset(index + at, 0, most_padding);
        at = (at + padding - 1) & -padding;
      }
    }
  }
};

// Panels whose rows share one gathering, and the cache.
constexpr int64_t panel_group = 4;

}  // namespace crest::CREST_ISA
