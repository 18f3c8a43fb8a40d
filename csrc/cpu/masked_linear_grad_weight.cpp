#include "../masked_linear_grad_weight.h"

#include "panel.h"
#include "transpose.h"

namespace crest::CREST_ISA {
namespace {

// grad_weight[row:row + rows, column:column + columns] as sums over the few rows of grad and x, whose columns are here.
template <int rows, class T, class A>
inline void products(const MaskedLinearGradWeight& a, int64_t row, int64_t column, int columns, const A* x,
                     int stride) {
  using V = Vec<A>;
  const bool* mask = a.mask + row * a.k + column;
  T* out = static_cast<T*>(a.grad_weight) + row * a.k + column;
  A grad[few_rows][rows];
  for (int64_t i = 0; i < a.n; ++i)
    for (int r = 0; r < rows; ++r) grad[i][r] = widen(static_cast<const T*>(a.grad)[i * a.m + row + r]);
  int j = 0;
  for (; j + V::width <= columns; j += V::width) {
    V sum[rows] = {};
    for (int64_t i = 0; i < a.n; ++i) {
      const V v = V::load(x + i * stride + j);
      for (int r = 0; r < rows; ++r) sum[r] = fma(v, V::all(grad[i][r]), sum[r]);
    }
    for (int r = 0; r < rows; ++r) sum[r].where(mask + r * a.k + j).store(out + r * a.k + j);
  }
  for (; j < columns; ++j) {
    for (int r = 0; r < rows; ++r) {
      A sum = 0;
      for (int64_t i = 0; i < a.n; ++i) sum += x[i * stride + j] * grad[i][r];
      narrow(mask[r * a.k + j] ? sum : A{0}, out[r * a.k + j]);
    }
  }
}

// The kept positions of a tile of grad_weight, row by row: row * columns + column. So small that the part of x it meets
// and the products stay in the first level of cache.
template <class A>
struct Tile {
  static constexpr int rows = 64, columns = 64;  // columns: as many as a word has bits
  // Positions of a row go in pairs, which share the loads of grad's row; the last may be without partner.
  static constexpr int group = 2, most = rows * columns + 64;

  A values[most];
  uint32_t index[most];
  uint64_t kept[rows];
  int begin[rows], count;

  // From `kept`. Meanwhile it asks for the part of `out` that will be written, unless that goes past the caches.
  template <class T>
  void gather(const T* out, int64_t k, int row_count, bool stream) {
    uint32_t* at = index;
    for (int r = 0; r < row_count; ++r) {
      if (!stream)
        for (int c = 0; c < columns; c += 64 / static_cast<int>(sizeof(T))) __builtin_prefetch(out + r * k + c, 0, 2);
      begin[r] = static_cast<int>(at - index);
      at = positions(kept[r], r * columns, at);
      *at = static_cast<uint32_t>(r * columns);
      at += (at - index) & (group - 1);
    }
    count = static_cast<int>(at - index);
    for (int i = 0; i < Vec<A>::width; ++i) at[i] = 0;  // the last register
  }

  template <class T>
  void scatter(int row, int column_count, T* out, bool stream) const {
    const A* from = values + begin[row];
    stream ? expand<true>(from, kept[row], column_count, out) : expand<false>(from, kept[row], column_count, out);
  }
};

// values = (first) or += the products of grad's rows and the rows of x that the kept positions point at.
template <bool first, class Row, class A>
inline void sample(Row, Tile<A>& at, const A* grad, const A* x) {
  using V = Vec<A>;
  constexpr int columns = Tile<A>::columns, group = Tile<A>::group;
  for (int i = 0; i < at.count; i += V::width) {
    const V products = sums<A>([&](int l) __attribute__((always_inline)) {
      const A* g = grad + static_cast<int64_t>(at.index[i + l / group * group] / columns) * Row::width;
      const A* row = x + static_cast<int64_t>(at.index[i + l] % columns) * Row::width;
      V product = V::load(g) * V::load(row);
      for (int r = 1; r < Row::registers; ++r)
        product = fma(V::load(g + r * V::width), V::load(row + r * V::width), product);
      return product;
    });
    (first ? products : V::load(at.values + i) + products).store(at.values + i);
  }
}

// grad_weight[begin:end, :] for the only panel, whose row of grad stays in registers: kept positions one by one, as
// they are found in the mask.
template <class Row, class T, class A>
inline void sample_in_place(Row, const MaskedLinearGradWeight& a, const A* grad, const A* x, int64_t begin,
                            int64_t end) {
  using V = Vec<A>;
  constexpr int rows = 64, tile = 32768 / (Row::width * static_cast<int>(sizeof(A)));  // x's part stays in cache
  for (int64_t i = begin; i < end; i += rows)
    for (int64_t first = 0; first < a.k; first += tile)
      for (int64_t row = i; row < min(i + rows, end); ++row) {
        V g[Row::registers];
        for (int r = 0; r < Row::registers; ++r) g[r] = V::load(grad + row * Row::width + r * V::width);
        const int64_t last = min(first + tile, a.k);
        const bool* mask = a.mask + row * a.k;
        T* out = static_cast<T*>(a.grad_weight) + row * a.k;
        std::memset(out + first, 0, (last - first) * sizeof(T));
        for (int64_t j = first; j < last; j += 64) {
          const int64_t ahead = 2 * a.k + j;  // of memory, which no prefetcher follows from row to row
          __builtin_prefetch(mask + ahead);
          for (int l = 0; l < 64; l += 64 / static_cast<int>(sizeof(T))) __builtin_prefetch(out + ahead + l, 1);
          for (uint64_t left = bits(mask + j, static_cast<int>(min<int64_t>(last - j, 64))); left; left &= left - 1) {
            const int64_t at = j + __builtin_ctzll(left);
            const A* from = x + at * Row::width;
            V product = g[0] * V::load(from);
            for (int r = 1; r < Row::registers; ++r) product = fma(g[r], V::load(from + r * V::width), product);
            narrow(product.sum(), out[at]);
          }
        }
      }
}

}  // namespace

void masked_linear_grad_weight_few(const MaskedLinearGradWeight& a, int64_t begin, int64_t end) {
  dispatch(a.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    using A = Acc<T>;
    // As many columns of x as stay in cache, with a pad that keeps rows out of each other's cache sets: rows a power of
    // two apart would share a few.
    constexpr int buffer = 32768 / sizeof(A), pad = 64 / sizeof(A);
    A x[buffer];
    const int tile = (buffer / max(static_cast<int>(a.n), 1) - pad) & ~63, stride = tile + pad;
    for (int64_t j = 0; j < a.k; j += tile) {
      const int columns = static_cast<int>(min<int64_t>(a.k - j, tile));
      for (int64_t i = 0; i < a.n; ++i)
        for (int c = 0; c < columns; ++c) x[i * stride + c] = widen(static_cast<const T*>(a.x)[i * a.k + j + c]);
      int64_t row = begin;
      for (; row + 4 <= end; row += 4) products<4, T>(a, row, j, columns, x, stride);
      for (; row < end; ++row) products<1, T>(a, row, j, columns, x, stride);
    }
  });
}

void masked_linear_grad_weight_sparse(const MaskedLinearGradWeight& a, const Panels& grad, const Panels& x,
                                      int64_t begin, int64_t end) {
  dispatch(a.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    using A = Acc<T>;
    using Block = Tile<A>;
    if (panel_count<A>(x) == 1) {
      bool done = false;
      with_row<A>(x, 0, [&](auto row) {
        // Compressing and expanding take little time on AVX-512, and more rows than eight registers hold would spill.
        if constexpr (register_bytes < 64 && decltype(row)::registers <= 8) {
          sample_in_place<decltype(row), T>(row, a, panel<A>(grad, 0), panel<A>(x, 0), begin, end);
          done = true;
        }
      });
      if (done) return;
    }
    constexpr int count = 8, width = count * Block::columns;  // tiles side by side: long runs of mask and grad_weight
    // A gradient of this many bytes is out of cache before anybody reads it: 1.3 times as fast at (4096, 9216).
    constexpr int64_t large = int64_t{32} << 20;
    const uintptr_t lines = reinterpret_cast<uintptr_t>(a.grad_weight) | a.k * sizeof(T);
    const bool stream = a.m * a.k * static_cast<int64_t>(sizeof(T)) >= large && lines % 64 == 0;
    Block tiles[count];
    for (int64_t i = begin; i < end; i += Block::rows) {
      const int rows = static_cast<int>(min<int64_t>(end - i, Block::rows));
      for (int64_t j = 0; j < a.k; j += width) {
        const int columns = static_cast<int>(min<int64_t>(a.k - j, width));
        const auto columns_of = [&](int t) { return min(columns - t * Block::columns, Block::columns); };
        const bool* mask = a.mask + i * a.k + j;
        T* out = static_cast<T*>(a.grad_weight) + i * a.k + j;
        for (int r = 0; r < rows; ++r)
          for (int t = 0; t * Block::columns < columns; ++t)
            tiles[t].kept[r] = bits(mask + r * a.k + t * Block::columns, columns_of(t));
        for (int t = 0; t * Block::columns < columns; ++t) {
          const int64_t first = t * Block::columns;
          tiles[t].gather(out + first, a.k, rows, stream);
          for (int64_t p = 0; p < panel_count<A>(x); ++p)
            with_row<A>(x, p, [&](auto row) {
              const A *g = panel<A>(grad, p) + i * row.width, *from = panel<A>(x, p) + (j + first) * row.width;
              p == 0 ? sample<true>(row, tiles[t], g, from) : sample<false>(row, tiles[t], g, from);
            });
        }
        for (int r = 0; r < rows; ++r, out += a.k)
          for (int t = 0; t * Block::columns < columns; ++t)
            tiles[t].scatter(r, columns_of(t), out + t * Block::columns, stream);
      }
    }
    end_stream();
  });
}

}  // namespace crest::CREST_ISA
