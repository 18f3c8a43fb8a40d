#pragma once
// The largest eigenvalues of a symmetric matrix and their vectors: Householder's reduction to tridiagonal form.
#include "tridiagonal.h"

namespace crest::CREST_ISA {

// Rows begin at multiples of this many numbers, with zeros behind their end.
constexpr int64_t row_pad = 16;
inline int64_t padded(int64_t n) { return (n + row_pad - 1) / row_pad * row_pad; }

inline double absolute(double x) { return x < 0 ? -x : x; }

template <class M>
inline double dot(int64_t begin, int64_t end, const M* a, const M* b) {
  using V = Vec<M>;
  V sum = V::zero();
  for (int64_t i = begin; i < end; i += V::width) sum = fma(V::load(a + i), V::load(b + i), sum);
  return static_cast<double>(sum.sum());
}

// a[i][:] -= v[i] w + w[i] v and p += a next, for rows i: one pass over the upper triangle, which stands for both. Its
// blocks on the diagonal are whole.
template <int rows, class M>
inline void update_rows(int64_t i, int64_t n, M* a, const M* v, const M* w, const M* next, M* p) {
  using V = Vec<M>;
  V vi[rows], wi[rows], xi[rows], sum[rows] = {};
  for (int r = 0; r < rows; ++r) {
    vi[r] = V::all(-v[i + r]);
    wi[r] = V::all(-w[i + r]);
    xi[r] = V::all(next[i + r]);
  }
  const int64_t from = i / row_pad * row_pad, off = from + row_pad;
  const auto step = [&](int64_t j, auto mirrored) CREST_INLINE {
    const V vj = V::load(v + j), wj = V::load(w + j), x = V::load(next + j);
    V below = V::zero();
    for (int r = 0; r < rows; ++r) {
      M* at = a + (i + r) * n + j;
      const V y = fma(vi[r], wj, fma(wi[r], vj, V::load(at)));
      y.store(at);
      sum[r] = fma(y, x, sum[r]);
      if constexpr (mirrored) below = fma(y, xi[r], below);
    }
    if constexpr (mirrored) (V::load(p + j) + below).store(p + j);
  };
  for (int64_t j = from; j < off; j += V::width) step(j, Index<0>{});
  for (int64_t j = off; j < n; j += V::width) step(j, Index<1>{});
  for (int r = 0; r < rows; ++r) p[i + r] += sum[r].sum();
}

// The eigenproblem of a (n, n), whose rows are padded(n) apart and whose upper triangle is read. M is float or double:
// what the values are exact to, relative to the largest.
template <class M>
struct Symmetric {
  int64_t n;
  M* a;             // overwritten
  M* reflectors;    // as a; row j: v of I - v v^T, which clears column j below the diagonal
  double* vectors;  // blocks of n rows, of the largest values first
  M* lines;         // 3 rows
  double* scratch;  // 3 blocks of n rows, and 3 rows
  double* values;   // whole blocks, in descending order
  double norm;      // what the tridiagonal matrix is to be multiplied by

  Tridiagonal tridiagonal() const {
    double* after = scratch + 3 * n * block;
    return {n, sizeof(M) == 4 ? 0x1p-26 : 0x1p-52, after, after + padded(n), after + 2 * padded(n)};
  }
  double vector(int64_t i, int64_t j) const { return vectors[(j / block * n + i) * block + j % block]; }

  void reduce() {
    const int64_t ld = padded(n);
    M *v = lines, *w = v + ld, *p = w + ld;
    const Tridiagonal t = tridiagonal();
    for (int64_t i = 0; i < 3 * ld; ++i) v[i] = 0;
    for (int64_t j = 0; j < n; ++j) {
      const int64_t from = j / row_pad * row_pad;
      M *row = a + j * ld, *next = reflectors + j * ld;
      for (int64_t i = from; i < ld; ++i) row[i] -= v[j] * w[i] + w[j] * v[i];  // the last update, of this row
      t.diagonal[j] = static_cast<double>(row[j]);
      for (int64_t i = 0; i < ld; ++i) next[i] = i > j ? row[i] : 0;
      const double sum = dot(from, ld, next, next), head = j + 1 < n ? static_cast<double>(next[j + 1]) : 0;
      t.beside[j] = head;
      const double rest = sum - head * head;
      if (j + 2 >= n || rest <= 0x1p-1000) {  // tridiagonal here already
        for (int64_t i = 0; i < ld; ++i) next[i] = 0;
      } else {
        const double length = __builtin_sqrt(sum), sign = head < 0 ? -1 : 1;
        t.beside[j] = -sign * length;
        next[j + 1] += static_cast<M>(sign * length);
        const M scale = static_cast<M>(1 / __builtin_sqrt(sum + length * absolute(head)));  // so that v^T v = 2
        for (int64_t i = from; i < ld; ++i) next[i] *= scale;
      }
      for (int64_t i = from; i < ld; ++i) p[i] = 0;
      int64_t i = j + 1;
      for (; i < n && i % 4; ++i) update_rows<1>(i, ld, a, v, w, next, p);  // fours lie in one block of the diagonal
      for (; i + 4 <= n; i += 4) update_rows<4>(i, ld, a, v, w, next, p);
      for (; i < n; ++i) update_rows<1>(i, ld, a, v, w, next, p);
      const M half = static_cast<M>(0.5 * dot(from, ld, p, next));
      for (i = from; i < ld; ++i) {
        v[i] = next[i];
        w[i] = i > j ? p[i] - half * next[i] : 0;
      }
    }
    norm = 0x1p-1000;
    for (int64_t i = 0; i < n; ++i)
      norm = max(norm, absolute(t.diagonal[i]) + absolute(t.beside[i]) + (i ? absolute(t.beside[i - 1]) : 0));
    for (int64_t i = 0; i < n; ++i) {
      t.diagonal[i] /= norm;
      t.beside[i] /= norm;
      t.squares[i] = max(t.beside[i] * t.beside[i], 0x1p-104);
    }
  }

  // How many values are above x, after reduce().
  int64_t above(double x) const { return tridiagonal().count(x / norm); }

  // The `count` largest values, and the vectors of the first `found`, after reduce().
  void solve(int64_t count, int64_t found) const {
    const Tridiagonal t = tridiagonal();
    for (int64_t b = 0; b < blocks(count); ++b) t.bisect(b * block, values + b * block);
    for (int64_t b = 0; b < blocks(found); ++b)
      t.vectors(values + b * block, b, static_cast<int>(min(found - b * block, block)), vectors, scratch);
    for (int64_t b = 0; b < blocks(found); ++b) back(vectors + b * n * block);
    for (int64_t i = 0; i < blocks(count) * block; ++i) values[i] *= norm;
  }

  // Brings a block of vectors to the coordinates of a.
  void back(double* z) const {
    using V = Vec<double>;
    constexpr int registers = block / V::width;
    for (int64_t j = n - 3; j >= 0; --j) {
      const M* v = reflectors + j * padded(n);
      V sum[registers] = {}, more[registers] = {};
      int64_t i = j + 1;
      for (; i + 2 <= n; i += 2)
        for (int g = 0; g < registers; ++g) {
          sum[g] = fma(V::all(static_cast<double>(v[i])), V::load(z + i * block + g * V::width), sum[g]);
          more[g] = fma(V::all(static_cast<double>(v[i + 1])), V::load(z + (i + 1) * block + g * V::width), more[g]);
        }
      for (; i < n; ++i)
        for (int g = 0; g < registers; ++g)
          sum[g] = fma(V::all(static_cast<double>(v[i])), V::load(z + i * block + g * V::width), sum[g]);
      for (int g = 0; g < registers; ++g) sum[g] = V::zero() - sum[g] - more[g];
      for (i = j + 1; i < n; ++i)
        for (int g = 0; g < registers; ++g) {
          double* at = z + i * block + g * V::width;
          fma(V::all(static_cast<double>(v[i])), sum[g], V::load(at)).store(at);
        }
    }
  }
};

}  // namespace crest::CREST_ISA
