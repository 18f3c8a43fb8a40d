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

// The same from the weights where they are, for `held` registers of the panel's rows: no chains, as positions come one
// by one. For a single panel that is faster than to gather them first, as finding them takes no time beside the
// products.
template <class Row, class T, class A>
inline void accumulate(Row, const T* weight, const bool* mask, int columns, int64_t k, const A* x, A* y) {
  using V = Vec<A>;
  constexpr int rows_ahead = 2;
  V sum[Row::held] = {};
  for (int i = 0; i < columns; i += 64) {
    const int64_t ahead = rows_ahead * k + i;
    for (int line = 0; line < static_cast<int>(sizeof(T)); ++line)
      prefetch<0>(reinterpret_cast<const char*>(weight + ahead) + 64 * line);
    prefetch<0>(mask + ahead);
    for (uint64_t left = bits(mask + i, min(columns - i, 64)); left; left &= left - 1) {
      const int64_t j = i + __builtin_ctzll(left);
      const V w = V::all(weight[j]);
      for (int r = 0; r < Row::held; ++r) sum[r] = fma(w, V::load(x + j * Row::width + r * V::width), sum[r]);
    }
  }
  for (int r = 0; r < Row::held; ++r) (V::load(y + r * V::width) + sum[r]).store(y + r * V::width);
}

// y (panels of rows [i, i + rows) of weight) += their products with panels of x from p0 on, weights gathered first.
template <class T, class A>
inline void add_gathered(const MaskedLinear& a, Kept<A>& kept, const Panels& x, int64_t p0, int64_t i,
                         const Panels& y) {
  const int rows = static_cast<int>(y.k);
  const int64_t p1 = min(p0 + panel_group, panel_count<A>(x));
  for (int64_t j = 0; j < a.k; j += kept.columns) {
    const int columns = static_cast<int>(min<int64_t>(a.k - j, kept.columns));
    kept.gather(static_cast<const T*>(a.weight) + i * a.k + j, a.mask + i * a.k + j, a.k, rows, columns, most_chains);
    for (int t = 0; t * kept.tile < columns; ++t)
      for (int64_t p = p0; p < p1; ++p)
        with_row<A>(x, p, [&](auto row) {
          const A* from = panel<A>(x, p) + (j + t * kept.tile) * row.width;
          for (int r = 0; r < rows; ++r) accumulate(row, kept.segment(r, t), from, panel<A>(y, p - p0) + r * row.width);
        });
  }
}

// The same for the only panel, weights in place.
template <class T, class Row, class A>
inline void add_in_place(Row, const MaskedLinear& a, const A* x, int64_t i, const Panels& y) {
  constexpr int tile = Kept<A>::tile;
  const T* weight = static_cast<const T*>(a.weight) + i * a.k;
  const bool* mask = a.mask + i * a.k;
  for (int64_t j = 0; j < a.k; j += tile) {
    const int columns = static_cast<int>(min<int64_t>(a.k - j, tile));
    for (int f = 0; f < Row::width; f += Row::held * Vec<A>::width)
      for (int64_t r = 0; r < y.k; ++r)
        accumulate(Row{}, weight + r * a.k + j, mask + r * a.k + j, columns, a.k, x + j * Row::width + f,
                   panel<A>(y, 0) + r * Row::width + f);
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
    const T* bias = static_cast<const T*>(a.bias);
    Kept<A> kept;
    A sums[kept.rows * panel_group * full_panel<A>];
    for (int64_t p0 = 0; p0 < panel_count<A>(x); p0 += panel_group) {
      const int64_t panels = min(panel_count<A>(x) - p0, panel_group), first = p0 * full_panel<A>;
      for (int64_t i = begin; i < end; i += kept.rows) {
        const Panels y{sums, a.n - first, min<int64_t>(end - i, kept.rows)};
        clear<A>(y, 0, panels, 0, y.k);
        with_row<A>(y, 0, [&](auto row) {
          // Half precision is widened once, when it is gathered.
          if constexpr (chains<decltype(row)> == 1 && sizeof(T) == sizeof(A))
            if (panel_count<A>(x) == 1) return add_in_place<T>(row, a, panel<A>(x, 0), i, y);
          add_gathered<T>(a, kept, x, p0, i, y);
        });
        for (int64_t p = 0; p < panels; ++p)
          unpack_panel<A>(y, p, 0, y.k, bias ? bias + i : bias, static_cast<T*>(a.y) + first * a.m + i, a.m);
      }
    }
  });
}

}  // namespace crest::CREST_ISA
