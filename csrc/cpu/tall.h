#pragma once
// A matrix that is taller than wide, its products, and its Gram matrix.
#include "blocks.h"
#include "transpose.h"

namespace crest::CREST_ISA {

// Working memory, handed out in pieces.
struct Arena {
  double* at;

  template <class T>
  T* take(int64_t count) {
    constexpr int64_t line = 8;
    double* begin = at;
    at += (count * static_cast<int64_t>(sizeof(T)) / static_cast<int64_t>(sizeof(double)) + line) / line * line;
    return reinterpret_cast<T*>(begin);
  }
};

// A matrix m (p, q), p >= q, times scale; A is float or double.
template <class A>
struct Tall {
  int64_t p, q;
  const A* m;
  int64_t row, column;
  A scale;
  double norm2;  // sum of squares of the scaled numbers

  template <class F>
  void with(const F& f) const {
    column == 1 ? f(Strided<A, 0, 1>{m, row}) : f(Strided<A, 1, 0>{m, 1, column});
  }
};

template <class A>
inline Tall<A> tall(const A* m, int64_t r, int64_t c) {
  return r < c ? Tall<A>{c, r, m, 1, c, A{1}, 0} : Tall<A>{r, c, m, c, 1, A{1}, 0};
}

// The sum of squares of the scaled numbers.
template <class A>
inline double squares(const Tall<A>& t) {
  using V = Vec<A>;
  const int64_t n = t.p * t.q;
  const V scale = V::all(t.scale);
  double sum = 0;
  constexpr int64_t part = 512;  // so few that sums in float32 keep their digits
  int64_t i = 0;
  for (; i + part <= n; i += part) {
    V some[4] = {};
    for (int64_t j = 0; j < part; j += 4 * V::width)
      for (int g = 0; g < 4; ++g) {
        const V x = scale * V::load(t.m + i + j + g * V::width);
        some[g] = fma(x, x, some[g]);
      }
    sum += static_cast<double>(((some[0] + some[1]) + (some[2] + some[3])).sum());
  }
  for (; i < n; ++i) sum += static_cast<double>(t.m[i] * t.scale) * static_cast<double>(t.m[i] * t.scale);
  return sum;
}

// Sets norm2, and scale where squares would leave the range of A. False if a number is not finite.
template <class A>
inline bool measure(Tall<A>& t) {
  t.norm2 = squares(t);
  if (t.norm2 > 1e-12 && t.norm2 < 1e16) return true;
  A largest = 0;
  for (int64_t i = 0; i < t.p * t.q; ++i) {
    const A x = t.m[i];
    if (!(x - x == 0)) return false;
    largest = max(largest, x < 0 ? -x : x);
  }
  // Not further than the scale itself may go, where largest is subnormal; its square then is none.
  constexpr int most = sizeof(A) == 4 ? 100 : 1000;
  for (int i = 0; i < most && largest * t.scale > 1; ++i) t.scale *= A(0.5);
  for (int i = 0; i < most && largest > 0 && largest * t.scale < 0.5; ++i) t.scale *= 2;
  t.norm2 = squares(t);
  return true;
}

// w = m x (p, 16), scaled.
template <class A>
inline void times(const Tall<A>& t, const A* x, A* w) {
  t.with([&](auto m) { product<false>(t.scale, t.p, t.q, m, x, block, w, block); });
}

// z = m^T m x (q, 16), scaled; m is read once. `some` has room for a block of p.
template <class A>
inline void gram_times(const Tall<A>& t, const A* x, A* some, A* z) {
  const int64_t rows = max<int64_t>((1 << 18) / (t.q * static_cast<int64_t>(sizeof(A))) / block * block, 4 * block);
  t.with([&](auto m) {
    for (int64_t i = 0; i < t.p; i += rows) {
      const int64_t here = min(rows, t.p - i);
      const auto part = m.at(i, 0);
      product<false>(t.scale, here, t.q, part, x, block, some, block);
      const auto transposed = flip(part);
      i == 0 ? product<false>(t.scale, t.q, here, transposed, some, block, z, block)
             : product<true>(t.scale, t.q, here, transposed, some, block, z, block);
    }
  });
}

// to (16, 16), rows m apart, += left^T right, of so many rows of 16. By itself: it is code enough.
template <class M>
__attribute__((noinline)) void add_product(const M* left, const M* right, int64_t rows, M* to, int64_t m) {
  for (int64_t row = 0; row < block; ++row) __builtin_prefetch(to + row * m, 1);
  product<true>(M{1}, block, rows, Rows<M>{left}, right, block, to, m);
}

// The upper triangle of g (m, m), m = count * 16: x^T x. load(i, rows, b, to) gives block b of rows of x.
template <class M, class Load>
inline void gram(int64_t n, int64_t count, M* g, M* chunk, const Load& load) {
  const int64_t m = count * block;
  for (int64_t i = 0; i < m * m; ++i) g[i] = 0;
  for (int64_t i = 0; i < n; i += gram_rows) {
    const int64_t here = min(gram_rows, n - i);
    for (int64_t b = 0; b < count; ++b) {
      M* own = chunk + b * gram_rows * block;
      load(i, here, b, own);
      for (int64_t c = 0; c <= b; ++c)
        add_product(chunk + c * gram_rows * block, own, here, g + c * block * m + b * block, m);
    }
  }
}

// The same of a matrix, in the precision of M; rows of g are blocks(q) * 16 apart.
template <class M, class A>
__attribute__((noinline)) void gram(const Tall<A>& t, M* g, M* chunk) {
  t.with([&](auto from) {
    gram(t.p, blocks(t.q), g, chunk, [&](int64_t first, int64_t rows, int64_t b, M* to) CREST_INLINE {
      const auto part = from.at(first, b * block);
      const int64_t columns = min(t.q - b * block, block);
      const auto number = [&](int64_t i, int64_t j) CREST_INLINE {
        return static_cast<M>(part.p[i * part.row() + j * part.column()] * t.scale);
      };
      for (int64_t i = 0; i < rows; ++i, to += block)
        if (part.column() == 1 && columns == block) {
          for (int64_t j = 0; j < block; ++j) to[j] = number(i, j);
        } else {
          for (int64_t j = 0; j < block; ++j) {
            to[j] = j < columns ? number(i, j) : M{0};
            asm volatile("");  // one by one: in registers it would be thrice the code, and no faster
          }
        }
    });
  });
}

// g, the upper triangle of a Gram matrix, becomes whole: a matrix to multiply with.
template <class A>
inline Tall<A> whole_gram(int64_t q, A* g) {
  using V = Vec<A>;
  const int64_t m = blocks(q) * block;
  for (int64_t i = 0; i < m; i += V::width)
    for (int64_t j = i; j < m; j += V::width) {
      V square[V::width];
      unroll<V::width>([&](auto r) CREST_INLINE { square[r] = V::load(g + (i + r) * m + j); });
      transpose(square);
      unroll<V::width>([&](auto r) CREST_INLINE { square[r].store(g + (j + r) * m + i); });
    }
  return {q, q, g, m, 1, A{1}, 0};
}

}  // namespace crest::CREST_ISA
