#include "../masked_linear.h"

#include "panel.h"

namespace crest::CREST_ISA {
namespace {

// rows x columns of y as dot products. Both matrices have k columns.
template <int rows, int columns, class T>
inline void dots(const MaskedLinear& a, int64_t row, int64_t column) {
  using A = Acc<T>;
  using V = Vec<A>;
  const int64_t k = a.k, m = a.m;
  const T* x = static_cast<const T*>(a.x) + row * k;
  const T* weight = static_cast<const T*>(a.weight) + column * k;
  const T* bias = static_cast<const T*>(a.bias);
  const bool* mask = a.mask + column * k;
  V sum[columns][rows] = {};
  int64_t j = 0;
  for (; j + V::width <= k; j += V::width) {
    V w[columns];
    for (int c = 0; c < columns; ++c) w[c] = V::load(weight + c * k + j).where(mask + c * k + j);
    for (int r = 0; r < rows; ++r) {
      const V v = V::load(x + r * k + j);
      for (int c = 0; c < columns; ++c) sum[c][r] = fma(w[c], v, sum[c][r]);
    }
  }
  T* y = static_cast<T*>(a.y) + row * m + column;
  for (int c = 0; c < columns; ++c) {
    for (int r = 0; r < rows; ++r) {
      A total = sum[c][r].sum();
      for (int64_t l = j; l < k; ++l)
        if (mask[c * k + l]) total += widen(weight[c * k + l]) * widen(x[r * k + l]);
      narrow(total + (bias ? widen(bias[column + c]) : A{0}), y[r * m + c]);
    }
  }
}

// All rows of x against `columns` rows of weight, which stay in cache from the first pass on.
template <int columns, class T>
inline void all_dots(const MaskedLinear& a, int64_t column) {
  int64_t row = 0;
  if constexpr (register_bytes == 64)
    for (; row + 8 <= a.n; row += 8) dots<8, columns, T>(a, row, column);
  for (; row + 4 <= a.n; row += 4) dots<4, columns, T>(a, row, column);
  for (; row + 2 <= a.n; row += 2) dots<2, columns, T>(a, row, column);
  for (; row < a.n; ++row) dots<1, columns, T>(a, row, column);
}

// Sums in flight: eight hide the latency of an fma, and four of a narrow panel's do with the help of the next row.
constexpr int most_chains = 4;
template <class Row>
constexpr int chains = max(1, min(8 / Row::held, most_chains));

// y += the kept weights of one row times the rows of a panel they point at.
template <class Row, class A>
inline void accumulate(Row, const typename Kept<A>::Segment& kept, const A* x, A* y) {
  using V = Vec<A>;
  constexpr int held = Row::held;
  for (int first = 0; first < Row::registers; first += held, x += held * V::width, y += held * V::width) {
    V sum[chains<Row>][held] = {};
    for (int i = 0; i < kept.count; i += chains<Row>) {
      for (int c = 0; c < chains<Row>; ++c) {
        const V w = V::all(kept.values[i + c]);
        const A* row = x + static_cast<int64_t>(kept.index[i + c]) * Row::width;
        for (int r = 0; r < held; ++r) sum[c][r] = fma(w, V::load(row + r * V::width), sum[c][r]);
      }
    }
    for (int r = 0; r < held; ++r) {
      V total = V::load(y + r * V::width);
      for (int c = 0; c < chains<Row>; ++c) total = total + sum[c][r];
      total.store(y + r * V::width);
    }
  }
}

}  // namespace

void masked_linear_few(const MaskedLinear& a, int64_t begin, int64_t end) {
  dispatch(a.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    int64_t column = begin;
    for (; column + 2 <= end; column += 2) all_dots<2, T>(a, column);
    if (column < end) all_dots<1, T>(a, column);
  });
}

void masked_linear_sparse(const MaskedLinear& a, const Panels& x, int64_t begin, int64_t end) {
  dispatch(a.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    using A = Acc<T>;
    const T *weight = static_cast<const T*>(a.weight), *bias = static_cast<const T*>(a.bias);
    Kept<A> kept;
    A sums[kept.rows * panel_group * full_panel<A>];
    for (int64_t p0 = 0; p0 < panel_count<A>(x); p0 += panel_group) {
      const int64_t panels = min(panel_count<A>(x) - p0, panel_group), row0 = p0 * full_panel<A>;
      for (int64_t i = begin; i < end; i += kept.rows) {
        const int rows = static_cast<int>(min<int64_t>(end - i, kept.rows));
        const Panels y{sums, a.n - row0, rows};
        clear<A>(y, 0, panels, 0, rows);
        for (int64_t j = 0; j < a.k; j += kept.columns) {
          const int columns = static_cast<int>(min<int64_t>(a.k - j, kept.columns));
          kept.gather(weight + i * a.k + j, a.mask + i * a.k + j, a.k, rows, columns, most_chains);
          for (int t = 0; t * kept.tile < columns; ++t)
            for (int64_t p = 0; p < panels; ++p)
              with_row<A>(y, p, [&](auto row) {
                const A* from = panel<A>(x, p0 + p) + (j + t * kept.tile) * row.width;
                for (int r = 0; r < rows; ++r)
                  accumulate(row, kept.segment(r, t), from, panel<A>(y, p) + r * row.width);
              });
        }
        for (int64_t p = 0; p < panels; ++p)
          unpack_panel<A>(y, p, 0, rows, bias ? bias + i : bias, static_cast<T*>(a.y) + row0 * a.m + i, a.m);
      }
    }
  });
}

}  // namespace crest::CREST_ISA
