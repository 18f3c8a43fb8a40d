#pragma once
// Eigenvalues and vectors of a symmetric matrix: Householder's reduction to tridiagonal form, then implicit QL.
#include "vec.h"

namespace crest::CREST_ISA {

// Rows of doubles begin at multiples of this many, with zeros behind their end.
constexpr int64_t row_pad = 16;
inline int64_t padded(int64_t n) { return (n + row_pad - 1) / row_pad * row_pad; }

inline double absolute(double x) { return x < 0 ? -x : x; }

inline double dot(int64_t begin, int64_t end, const double* a, const double* b) {
  using V = Vec<double>;
  V sum[2] = {};
  for (int64_t i = begin; i < end; i += 2 * V::width) {
    sum[0] = fma(V::load(a + i), V::load(b + i), sum[0]);
    sum[1] = fma(V::load(a + i + V::width), V::load(b + i + V::width), sum[1]);
  }
  return (sum[0] + sum[1]).sum();
}

// a[i][:] -= v[i] w + w[i] v and p[i] = a[i] next, for rows i in [begin, end): one pass over the matrix.
template <int rows>
inline void update_rows(int64_t i, int64_t from, int64_t n, double* a, const double* v, const double* w,
                        const double* next, double* p) {
  using V = Vec<double>;
  V vi[rows], wi[rows], sum[rows] = {};
  for (int r = 0; r < rows; ++r) {
    vi[r] = V::all(-v[i + r]);
    wi[r] = V::all(-w[i + r]);
  }
  for (int64_t j = from; j < n; j += V::width) {
    const V vj = V::load(v + j), wj = V::load(w + j), x = V::load(next + j);
    for (int r = 0; r < rows; ++r) {
      double* at = a + (i + r) * n + j;
      const V y = fma(vi[r], wj, fma(wi[r], vj, V::load(at)));
      y.store(at);
      sum[r] = fma(y, x, sum[r]);
    }
  }
  for (int r = 0; r < rows; ++r) p[i + r] = sum[r].sum();
}

// The eigenproblem of a (n, n), whose rows are padded(n) apart. Working memory of the same size: `reflectors` and
// `vectors`, and 8 rows of `scratch`.
struct Symmetric {
  int64_t n;
  double* a;           // overwritten
  double* reflectors;  // row j: v of I - v v^T, which clears column j below the diagonal
  double* vectors;     // row i: of values[i], in the coordinates of the tridiagonal matrix
  double* scratch;
  double* values;  // (n,), in no order
  int64_t* order;  // (n,), from the largest on

  double* line(int i) const { return scratch + i * padded(n); }

  void tridiagonalise(double* diagonal, double* beside) const {
    const int64_t ld = padded(n);
    double *v = line(0), *w = line(1), *p = line(2);
    for (int64_t i = 0; i < 3 * ld; ++i) v[i] = 0;
    for (int64_t j = 0; j < n; ++j) {
      const int64_t from = j / row_pad * row_pad;
      double *row = a + j * ld, *next = reflectors + j * ld;
      for (int64_t i = from; i < ld; ++i) row[i] -= v[j] * w[i] + w[j] * v[i];  // the last update, of this row
      diagonal[j] = row[j];
      for (int64_t i = 0; i < ld; ++i) next[i] = i > j ? row[i] : 0;
      const double squares = dot(from, ld, next, next), head = j + 1 < n ? next[j + 1] : 0;
      beside[j] = head;
      const double rest = squares - head * head;
      if (j + 2 >= n || rest <= 0x1p-1000) {  // tridiagonal here already
        for (int64_t i = 0; i < ld; ++i) next[i] = 0;
      } else {
        const double norm = __builtin_sqrt(squares), sign = head < 0 ? -1 : 1;
        beside[j] = -sign * norm;
        next[j + 1] += sign * norm;
        const double scale = 1 / __builtin_sqrt(squares + norm * absolute(head));  // so that v^T v = 2
        for (int64_t i = from; i < ld; ++i) next[i] *= scale;
      }
      int64_t i = j + 1;
      for (; i + 4 <= n; i += 4) update_rows<4>(i, from, ld, a, v, w, next, p);
      for (; i < n; ++i) update_rows<1>(i, from, ld, a, v, w, next, p);
      const double half = 0.5 * dot(from, ld, p, next);
      for (i = from; i < ld; ++i) {
        v[i] = next[i];
        w[i] = i > j ? p[i] - half * next[i] : 0;
      }
    }
  }

  // Turns rows i and i + 1 of the vectors, for i from last down to first: each row is read and written once.
  void rotate(int64_t first, int64_t last, const double* cosine, const double* sine) const {
    using V = Vec<double>;
    constexpr int registers = 2;
    const int64_t ld = padded(n);
    for (int64_t j = 0; j < ld; j += registers * V::width) {
      V upper[registers];
      for (int g = 0; g < registers; ++g) upper[g] = V::load(vectors + (last + 1) * ld + j + g * V::width);
      for (int64_t i = last; i >= first; --i) {
        const V c = V::all(cosine[i]), s = V::all(sine[i]);
        double* at = vectors + i * ld + j;
        for (int g = 0; g < registers; ++g) {
          const V lower = V::load(at + g * V::width);
          fma(s, lower, c * upper[g]).store(at + ld + g * V::width);
          upper[g] = c * lower - s * upper[g];
        }
      }
      for (int g = 0; g < registers; ++g) upper[g].store(vectors + first * ld + j + g * V::width);
    }
  }

  // Implicit QL with Wilkinson's shifts.
  void diagonalise(double* diagonal, double* beside, double* cosine, double* sine) const {
    double norm = 0;
    for (int64_t i = 0; i < n; ++i) norm = max(norm, absolute(diagonal[i]) + absolute(beside[i]));
    const double negligible = 0x1p-53 * norm;
    for (int64_t l = 0; l < n; ++l) {
      for (int iteration = 0; iteration < 60; ++iteration) {
        int64_t m = l;
        while (m + 1 < n && absolute(beside[m]) > negligible) ++m;
        if (m == l) break;
        double g = (diagonal[l + 1] - diagonal[l]) / (2 * beside[l]), r = __builtin_sqrt(g * g + 1);
        g = diagonal[m] - diagonal[l] + beside[l] / (g + (g < 0 ? -r : r));
        double s = 1, c = 1, p = 0;
        int64_t i = m - 1;
        for (; i >= l; --i) {
          const double f = s * beside[i], b = c * beside[i];
          r = __builtin_sqrt(f * f + g * g);
          beside[i + 1] = r;
          if (r == 0) {
            diagonal[i + 1] -= p;
            beside[m] = 0;
            break;
          }
          const double inverse = 1 / r;
          s = f * inverse;
          c = g * inverse;
          g = diagonal[i + 1] - p;
          r = (diagonal[i] - g) * s + 2 * c * b;
          p = s * r;
          diagonal[i + 1] = g + p;
          g = c * r - b;
          cosine[i] = c;
          sine[i] = s;
        }
        rotate(i + 1, m - 1, cosine, sine);
        if (i >= l) continue;
        diagonal[l] -= p;
        beside[l] = g;
        beside[m] = 0;
      }
    }
  }

  void solve() const {
    const int64_t ld = padded(n);
    double* beside = line(3);
    tridiagonalise(values, beside);
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < ld; ++j) vectors[i * ld + j] = i == j;
    diagonalise(values, beside, line(4), line(5));
    for (int64_t i = 0; i < n; ++i) {
      int64_t j = i;
      for (; j > 0 && values[order[j - 1]] < values[i]; --j) order[j] = order[j - 1];
      order[j] = i;
    }
  }

  double* found(int64_t i) const { return vectors + order[i] * padded(n); }

  // Brings the vector of the i-th largest value to the coordinates of a. Once for each.
  const double* vector(int64_t i) const {
    using V = Vec<double>;
    const int64_t ld = padded(n);
    double* z = found(i);
    for (int64_t j = n - 3; j >= 0; --j) {
      const int64_t from = j / row_pad * row_pad;
      const double* v = reflectors + j * ld;
      const V share = V::all(-dot(from, ld, v, z));
      for (int64_t l = from; l < ld; l += V::width) fma(share, V::load(v + l), V::load(z + l)).store(z + l);
    }
    return z;
  }
};

}  // namespace crest::CREST_ISA
