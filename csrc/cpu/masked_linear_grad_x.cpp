#include "../masked_linear_grad_x.h"

#include "panel.h"

namespace crest::CREST_ISA {
namespace {

// grad_x += grad[:, row:row + rows] (weight where mask), in a tile of columns where sums (n, stride) lie in cache.
template <int rows, class T, class A>
inline void add_rows(const MaskedLinearGradX& a, int64_t row, int64_t column, int columns, A* sums, int stride) {
  using V = Vec<A>;
  const T* weight = static_cast<const T*>(a.weight) + row * a.k + column;
  const bool* mask = a.mask + row * a.k + column;
  A grad[few_rows][rows];
  for (int64_t i = 0; i < a.n; ++i)
    for (int r = 0; r < rows; ++r) grad[i][r] = widen(static_cast<const T*>(a.grad)[i * a.m + row + r]);
  int j = 0;
  for (; j + V::width <= columns; j += V::width) {
    V w[rows];
    for (int r = 0; r < rows; ++r) w[r] = V::load(weight + r * a.k + j).where(mask + r * a.k + j);
    for (int64_t i = 0; i < a.n; ++i) {
      V sum = V::load(sums + i * stride + j);
      for (int r = 0; r < rows; ++r) sum = fma(w[r], V::all(grad[i][r]), sum);
      sum.store(sums + i * stride + j);
    }
  }
  for (; j < columns; ++j)
    for (int r = 0; r < rows; ++r)
      if (mask[r * a.k + j])
        for (int64_t i = 0; i < a.n; ++i) sums[i * stride + j] += widen(weight[r * a.k + j]) * grad[i][r];
}

// x += the kept weights of one row times grad, each into the row of a panel it points at.
template <class Row, class A>
inline void scatter(Row, const typename Kept<A>::Segment& kept, const A* grad, A* x) {
  using V = Vec<A>;
  for (int first = 0; first < Row::registers; first += Row::held) {
    V g[Row::held];
    for (int r = 0; r < Row::held; ++r) g[r] = V::load(grad + (first + r) * V::width);
    for (int i = 0; i < kept.count; ++i) {
      const V w = V::all(kept.values[i]);
      A* row = x + static_cast<int64_t>(kept.index[i]) * Row::width + first * V::width;
      for (int r = 0; r < Row::held; ++r) fma(w, g[r], V::load(row + r * V::width)).store(row + r * V::width);
    }
  }
}

}  // namespace

void masked_linear_grad_x_few(const MaskedLinearGradX& a, int64_t begin, int64_t end) {
  dispatch(a.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    using A = Acc<T>;
    // Long stretches of weight, so that memory streams: as long as the sums stay in the second level of cache.
    constexpr int buffer = 65536 / sizeof(A);
    A sums[buffer];
    // The pad keeps the rows' sums out of each other's cache sets: rows a power of two apart would share a few.
    constexpr int pad = 64 / sizeof(A);
    const int tile = (buffer / static_cast<int>(a.n) - pad) & ~63, stride = tile + pad;
    for (int64_t j = begin; j < end; j += tile) {
      const int columns = static_cast<int>(min<int64_t>(end - j, tile));
      std::memset(sums, 0, a.n * stride * sizeof(A));
      int64_t row = 0;
      for (; row + 4 <= a.m; row += 4) add_rows<4, T>(a, row, j, columns, sums, stride);
      for (; row < a.m; ++row) add_rows<1, T>(a, row, j, columns, sums, stride);
      T* x = static_cast<T*>(a.grad_x) + j;
      for (int64_t i = 0; i < a.n; ++i)
        for (int c = 0; c < columns; ++c) narrow(sums[i * stride + c], x[i * a.k + c]);
    }
  });
}

void masked_linear_grad_x_sparse(const MaskedLinearGradX& a, const Panels& grad, const Panels& grad_x, int64_t begin,
                                 int64_t end) {
  dispatch(a.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    using A = Acc<T>;
    const T* weight = static_cast<const T*>(a.weight);
    Kept<A> kept;
    for (int64_t p0 = 0, p1; p0 < panel_count<A>(grad); p0 = p1) {
      p1 = min(p0 + panel_group, panel_count<A>(grad));
      clear<A>(grad_x, p0, p1, begin, end);
      for (int64_t j = begin; j < end; j += kept.columns) {
        const int columns = static_cast<int>(min<int64_t>(end - j, kept.columns));
        for (int64_t i = 0; i < a.m; i += kept.rows) {
          const int rows = static_cast<int>(min<int64_t>(a.m - i, kept.rows));
          kept.gather(weight + i * a.k + j, a.mask + i * a.k + j, a.k, rows, columns, 1);
          for (int t = 0; t * kept.tile < columns; ++t)
            for (int64_t p = p0; p < p1; ++p)
              with_row<A>(grad, p, [&](auto row) {
                A* to = panel<A>(grad_x, p) + (j + t * kept.tile) * row.width;
                for (int r = 0; r < rows; ++r)
                  scatter(row, kept.segment(r, t), panel<A>(grad, p) + (i + r) * row.width, to);
              });
        }
      }
    }
  });
}

}  // namespace crest::CREST_ISA
