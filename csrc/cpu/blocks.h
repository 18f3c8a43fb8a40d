#pragma once
// Products with blocks of sixteen columns, stored row by row, and their orthonormalisation.
#include "../truncated_svd.h"
#include "vec.h"

namespace crest::CREST_ISA {

// Where the element (i, j) of a matrix is: p[i * row + j * column]. A stride known beforehand is a template argument.
template <class A, int row_ = 0, int column_ = 0>
struct Strided {
  const A* p;
  int64_t row_stride = row_, column_stride = column_;

  int64_t row() const { return row_ ? row_ : row_stride; }
  int64_t column() const { return column_ ? column_ : column_stride; }
  Strided at(int64_t i, int64_t j) const { return {p + i * row() + j * column(), row_stride, column_stride}; }
};

template <class A, int row, int column>
inline Strided<A, column, row> flip(Strided<A, row, column> m) {
  return {m.p, m.column_stride, m.row_stride};
}

template <int rows, bool add, class A, class M>
inline void product_of_rows(A alpha, int64_t k, M m, const A* x, int64_t x_row, A* c, int64_t c_row) {
  using V = Vec<A>;
  constexpr int registers = block / V::width, chains = rows * registers >= 8 ? 2 : 1;
  V sum[chains][rows][registers] = {};
  const int64_t row = m.row(), column = m.column();
  const auto step = [&](int chain, int64_t l) __attribute__((always_inline)) {
    V in[registers];
    for (int g = 0; g < registers; ++g) in[g] = V::load(x + l * x_row + g * V::width);
    for (int r = 0; r < rows; ++r) {
      const V factor = V::all(m.p[r * row + l * column]);
      for (int g = 0; g < registers; ++g) sum[chain][r][g] = fma(factor, in[g], sum[chain][r][g]);
    }
  };
  const int64_t whole = k - k % chains;
  for (int64_t l = 0; l < whole; l += chains)
    for (int chain = 0; chain < chains; ++chain) step(chain, l + chain);
  for (int64_t l = whole; l < k; ++l) step(0, l);
  for (int r = 0; r < rows; ++r)
    for (int g = 0; g < registers; ++g) {
      A* to = c + r * c_row + g * V::width;
      V all = sum[0][r][g];
      if constexpr (chains == 2) all = all + sum[1][r][g];
      (add ? fma(V::all(alpha), all, V::load(to)) : V::all(alpha) * all).store(to);
    }
}

// c = alpha m x, or c += it: c (n, 16), m (n, k), x (k, 16).
template <bool add, class A, class M>
inline void product(A alpha, int64_t n, int64_t k, M m, const A* x, int64_t x_row, A* c, int64_t c_row) {
  constexpr int registers = block / Vec<A>::width, rows = max(8 / registers, 1);
  const int64_t whole = n - n % rows;
  for (int64_t i = 0; i < whole; i += rows)
    product_of_rows<rows, add>(alpha, k, m.at(i, 0), x, x_row, c + i * c_row, c_row);
  for (int64_t i = whole; i < n; ++i) product_of_rows<1, add>(alpha, k, m.at(i, 0), x, x_row, c + i * c_row, c_row);
}

template <class A>
using Columns = Strided<A, block, 1>;  // a block as it is
template <class A>
using Rows = Strided<A, 1, block>;  // and transposed

// A reproducible stream of numbers in [-1, 1): splitmix64.
struct Random {
  uint64_t state = 0;
  double next() {
    uint64_t x = state += 0x9e3779b97f4a7c15;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
    x = (x ^ x >> 27) * 0x94d049bb133111eb;
    return static_cast<double>(static_cast<int64_t>(x ^ x >> 31)) * 0x1p-63;
  }
};

// sums[j] = sum of z[i][first] z[i][j] over the rows.
template <class A>
inline void products_with_column(int64_t n, const A* z, int first, A* sums) {
  using V = Vec<A>;
  constexpr int registers = block / V::width, chains = max(8 / registers, 1);
  V sum[chains][registers] = {};
  const auto step = [&](int chain, int64_t row) __attribute__((always_inline)) {
    const A* at = z + row * block;
    for (int g = 0; g < registers; ++g)
      sum[chain][g] = fma(V::all(at[first]), V::load(at + g * V::width), sum[chain][g]);
  };
  const int64_t whole = n - n % chains;
  for (int64_t i = 0; i < whole; i += chains)
    for (int chain = 0; chain < chains; ++chain) step(chain, i + chain);
  for (int64_t i = whole; i < n; ++i) step(0, i);
  for (int g = 0; g < registers; ++g) {
    for (int chain = 1; chain < chains; ++chain) sum[0][g] = sum[0][g] + sum[chain][g];
    sum[0][g].store(sums + g * V::width);
  }
}

// z[i][:] = z[i][:] * scale - z[i][first] * factor
template <class A>
inline void update_columns(int64_t n, A* z, int first, const A* scale, const A* factor) {
  using V = Vec<A>;
  constexpr int registers = block / V::width;
  V s[registers], f[registers];
  for (int g = 0; g < registers; ++g) {
    s[g] = V::load(scale + g * V::width);
    f[g] = V::zero() - V::load(factor + g * V::width);
  }
  for (int64_t i = 0; i < n; ++i) {
    A* at = z + i * block;
    const V x = V::all(at[first]);
    for (int g = 0; g < registers; ++g) {
      A* to = at + g * V::width;
      fma(x, f[g], V::load(to) * s[g]).store(to);
    }
  }
}

template <class A>
constexpr A epsilon = sizeof(A) == 4 ? A(0x1p-23) : A(0x1p-52);

// Makes the columns of z (n, 16) orthonormal, and orthogonal to those of the blocks v. h (count, 16, 16), if asked for:
// v^T z as it was; r (16, 16): the upper triangle with z = v h + (new z) r. Columns that were nothing but rounding have
// a row of zeros in r, and become random ones, or zero if there is no room for more. Returns how many there were.
// Only the first `columns` are looked at. What loses all but the share `enough` of its squares goes through again: the
// rounding of what is left is as much larger.
template <class A>
inline int orthonormalise(int64_t n, const A* v, int64_t count, A* z, A* h, A* r, int columns, Random& random,
                          A enough = A(0.25)) {
  A some[block * block], sums[block], scale[block], factor[block], size[block] = {};
  bool fresh[block] = {};
  int lost = 0;
  for (int i = 0; i < block * block; ++i) r[i] = 0;
  for (int i = 0; i < columns; ++i) {
    products_with_column(n, z, i, sums);
    size[i] = sums[i];
  }
  constexpr int passes = 4;
  for (int pass = 0; pass < passes; ++pass) {
    // From the last block on: in a Krylov space its share is large, and what it leaves of the others' goes with theirs.
    for (int64_t p = count - 1; p >= 0; --p) {
      const A* of = v + p * n * block;
      A* into = h && pass == 0 ? h + p * block * block : some;
      product<false>(A{1}, block, n, Rows<A>{of}, z, block, into, block);
      product<true>(A{-1}, n, block, Columns<A>{of}, into, block, z, block);
    }
    bool again = false;
    for (int j = 0; j < columns; ++j) {
      products_with_column(n, z, j, sums);
      const A left = sums[j], rounding = 64 * epsilon<A>;
      const bool cancelled = left < enough * size[j];
      if (!(left > rounding * rounding * size[j]) || left < A(1e-36) || (cancelled && pass + 1 == passes)) {
        if (!fresh[j]) ++lost;
        fresh[j] = true;
        const bool more = pass + 1 < passes;
        for (int64_t i = 0; i < n; ++i) z[i * block + j] = more ? static_cast<A>(random.next()) : A{0};
        size[j] = static_cast<A>(n) / 3;
        again = again || more;
        continue;
      }
      again = again || cancelled;
      const A norm = static_cast<A>(__builtin_sqrt(left)), inverse = 1 / norm;
      for (int i = 0; i < block; ++i) {
        scale[i] = i == j ? inverse : A{1};
        factor[i] = i > j ? sums[i] / left : A{0};
        if (pass == 0) r[j * block + i] = i < j ? A{0} : i == j ? norm : sums[i] * inverse;
      }
      // z[i][j] is read before it is scaled.
      update_columns(n, z, j, scale, factor);
      size[j] = 1;
    }
    if (!again) break;
  }
  return lost;
}

}  // namespace crest::CREST_ISA
