#pragma once
// The right singular vectors of the largest singular values of one matrix: by a block Krylov search, or all at once.
#include "symmetric.h"
#include "tall.h"

namespace crest::CREST_ISA {

// What is looked for: the `count` largest values, or all that are above `least`, of which what is above it matters.
struct Wanted {
  int64_t count;
  double least;      // of the squares; negative: count
  double tolerance;  // of the squares, relative; with `least` of the matrix that is left, relative to the largest value
  double floor;      // of the squares, of the largest of them: what is smaller may come out as anything as small
};

constexpr int64_t nowhere = -1;  // not found
constexpr int64_t drowned = -2;  // too small beside the largest for the digits of this type

// Whether the Gram matrix is made in less time than it saves a search, whose first m directions hold so much of norm2.
template <class A>
inline bool gram_pays(const Tall<A>& t, const Wanted& wanted, double held, int64_t m) {
  const double p = static_cast<double>(t.p), q = static_cast<double>(t.q), done = static_cast<double>(m);
  const bool flat = held * q < 2 * done * t.norm2;
  const double directions = flat ? q / 2 : static_cast<double>(2 * (wanted.count + 2 * block));
  return (directions - done) * (4 * p - 2 * q) > p * q;
}

template <class M>
inline Symmetric<M> symmetric(int64_t n, Arena& arena) {
  const int64_t ld = padded(n);
  Symmetric<M> s;
  s.n = n;
  s.a = arena.take<M>(n * ld);
  s.reflectors = arena.take<M>(n * ld);
  s.lines = arena.take<M>(3 * ld);
  s.vectors = arena.take<double>(n * ld);
  s.scratch = arena.take<double>(3 * n * block + 3 * ld);
  s.values = arena.take<double>(ld);
  return s;
}

// out = v times the first `count` eigenvectors, and zeros; v and out are blocks of n rows.
template <class A, class M>
inline void turn(int64_t n, const A* v, const Symmetric<M>& s, int64_t count, A* out, A* some) {
  const int64_t from = blocks(s.n);
  for (int64_t b = 0; b < blocks(count); ++b) {
    for (int64_t i = 0; i < from * block; ++i)
      for (int64_t j = 0; j < block; ++j)
        some[i * block + j] = i < s.n && b * block + j < count ? static_cast<A>(s.vector(i, b * block + j)) : A{0};
    A* to = out + b * n * block;
    for (int64_t f = 0; f < from; ++f) {
      const A *of = v + f * n * block, *factors = some + f * block * block;
      f == 0 ? product<false>(A{1}, n, block, Columns<A>{of}, factors, block, to, block)
             : product<true>(A{1}, n, block, Columns<A>{of}, factors, block, to, block);
    }
  }
}

// Whether the `count` largest values of the n found are the wanted ones, and converged. error(i) bounds how far the
// i-th is off; left: the sum of all values, of which those not found are part.
template <class M, class Error>
inline bool settled(const Wanted& wanted, int64_t count, int64_t n, const Symmetric<M>& s, double left, double floor,
                    double unseen, double& worst, const Error& error) {
  const auto value = [&](int64_t i) { return max(s.values[i], 0.0); };
  worst = 1;
  if (count > n - 1) return false;  // the next one must be known to be smaller
  worst = 0;
  if (wanted.least >= 0) {
    // Vectors are off by angles of residual / gap; the next value must not grow beyond `least`.
    const double root = __builtin_sqrt(wanted.least);
    for (int64_t i = 0; i < count; ++i) {
      const double residual = error(i), gap = value(i) - value(count);
      const double angle = residual < gap ? residual / gap : 1;
      worst = max(worst, angle * (__builtin_sqrt(value(i)) - root) / (wanted.tolerance * __builtin_sqrt(value(0))));
    }
    worst = max(worst, 2 * error(count) / (wanted.least - value(count) + floor));
  } else {
    double sum = left, all = 0;
    for (int64_t i = 0; i < count; ++i) sum -= value(i);
    for (int64_t i = 0; i < count; ++i) {
      const double residual = error(i), gap = value(i) - value(count);
      const double off = residual < gap ? residual * residual / gap : residual;
      all += off;
      worst = max(worst, off / (wanted.tolerance * value(i) + floor));
    }
    worst = max(worst, all / (wanted.tolerance * max(sum, 0.0) + floor));
  }
  if (worst > 1) return false;
  // A block sees as many equal values as it has columns: of more, some may be missing.
  for (int64_t i = 0; i + block <= count + 1 && i + block <= n; ++i)
    if (value(i) - value(i + block - 1) <= 1e-4 * value(i) && value(i) > floor) return false;
  const double smallest = wanted.least >= 0 ? wanted.least : count ? value(count - 1) : 0;
  return unseen <= max(smallest, floor);
}

// Entries of the Gram matrix, or of its projection, are as far off as the largest rounds. Whether that mixes what is
// found with the rest.
template <class M>
inline bool hidden(const Wanted& wanted, int64_t count, const Symmetric<M>& s) {
  if (sizeof(M) == 8 || count == 0) return false;
  const double last = max(s.values[count - 1], 0.0), noise = static_cast<double>(epsilon<M>) * s.values[0];
  const double allowed = wanted.tolerance * last + 1e-300;
  if (wanted.least >= 0)  // an angle of noise / gap, times what is above `least`
    return noise > 2 * wanted.tolerance * __builtin_sqrt(wanted.least * s.values[0]);
  return noise > allowed && s.above(last - noise * noise / allowed) > count;
}

// To base 2, to a tenth.
inline double logarithm(double x) {
  uint64_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  return static_cast<double>(static_cast<int64_t>(bits >> 32)) * 0x1p-20 - 1023;
}

// Orthonormal v (blocks of q rows) that hold the wanted vectors, the largest first; returns how many, or -1: not found.
// `most` is how many v has room for.
template <class A>
inline int64_t search(const Tall<A>& t, const Wanted& wanted, int64_t most, A* v, Arena arena) {
  const int64_t q = t.q, cap = min(most_directions(q, most), blocks(q) * block), ld = cap;
  A* basis = arena.take<A>((cap + block) * q);
  A* some = arena.take<A>(
      max<int64_t>(block * ((1 << 18) / (q * static_cast<int64_t>(sizeof(A))) + 5 * block), (cap + block) * block));
  A* h = arena.take<A>((cap + block) * block);
  A* projected = arena.take<A>(cap * ld);
  Symmetric<A> s = symmetric<A>(cap, arena);
  const bool tall = gram_may_pay(t.p, q);
  A* g = arena.take<A>(tall ? blocks(q) * block * (blocks(q) * block + gram_rows) : 0);
  Tall<A> whole{};  // what is multiplied with, once it is made
  A r[block * block];
  Random random;
  double unseen = 0;

  for (int64_t i = 0; i < q * block; ++i) basis[i] = static_cast<A>(random.next());
  int lost = orthonormalise<A>(q, nullptr, 0, basis, nullptr, r, block, random);
  int64_t next_check = min(max<int64_t>(wanted.least >= 0 ? 0 : wanted.count + 2 * block, 3 * block), cap),
          last_check = 0;
  double last_worst = 0;
  for (int64_t m = block;; m += block) {
    const int64_t b = m / block - 1;
    A* z = basis + m * q;
    const A* x = basis + b * block * q;
    whole.m ? times(whole, x, z) : gram_times(t, x, some, z);
    const int lost_before = lost;
    lost = orthonormalise(q, basis, b + 1, z, h, r, block, random, A(0.06));
    for (int64_t i = 0; i < m; ++i)
      for (int64_t j = 0; j < block; ++j) {
        const A x = h[i * block + j];
        projected[i * ld + m - block + j] = x;
        projected[(m - block + j) * ld + i] = x;
      }
    if (tall && m == 2 * block) {
      double held = 0;
      for (int64_t j = 0; j < m; ++j) held += static_cast<double>(projected[j * ld + j]);
      if (gram_pays(t, wanted, held, m)) {
        gram(t, g, g + blocks(q) * block * blocks(q) * block);
        whole = whole_gram(q, g);
      }
    }
    if (lost_before && b > 0) {
      double seen = 0;
      for (int64_t j = m - lost_before; j < m; ++j)
        seen = max(seen, absolute(static_cast<double>(projected[j * ld + j])));
      for (int64_t j = m - block; j < m; ++j) seen = max(seen, absolute(static_cast<double>(projected[j * ld + j])));
      unseen = 64 * seen * static_cast<double>(q - m);
    }
    if (m < next_check && m < cap) continue;
    s.n = m;
    const int64_t row = padded(m);
    for (int64_t i = 0; i < m; ++i)
      for (int64_t j = 0; j < row; ++j) s.a[i * row + j] = projected[i * ld + j];
    s.reduce();
    const int64_t count = wanted.least >= 0 ? s.above(wanted.least) : min(wanted.count, m);
    const int64_t next = min(count + 1, m);
    s.solve(next, wanted.least >= 0 ? next : count);
    const double largest = max(s.values[0], 0.0);
    double worst = 0;
    const auto error = [&](int64_t i) {
      double sum = 0;
      for (int a = 0; a < block; ++a) {
        double x = 0;
        for (int c = a; c < block; ++c) x += static_cast<double>(r[a * block + c]) * s.vector(m - block + c, i);
        sum += x * x;
      }
      return __builtin_sqrt(sum);
    };
    // At q directions nothing is left outside.
    if (settled(wanted, count, m, s, t.norm2, wanted.floor * largest + 1e-300, unseen, worst, error) || m >= q) {
      if (count > most) return nowhere;
      if (hidden(wanted, count, s)) return drowned;
      turn(q, basis, s, count, v, some);
      for (int64_t j = 0; j < count; j += block)  // the basis is so only to a few roundings
        orthonormalise<A>(q, v, j / block, v + j * q, nullptr, r, static_cast<int>(min(count - j, block)), random);
      return count;
    }
    if (m >= cap) return nowhere;
    // The error falls as a power: aim at a little less than where it should be small enough.
    const double faster = last_check ? logarithm(last_worst / worst) : 0;
    const double steps = faster > 0 ? 0.9 * logarithm(worst) / faster * static_cast<double>(m - last_check) : block;
    last_check = m;
    last_worst = worst;
    const int64_t ahead = static_cast<int64_t>(min(steps, 0.25 * static_cast<double>(m)));
    next_check = min(m + max(max(block, ahead), m / 8), cap);
  }
}

// The same from the whole Gram matrix, in the precision of M, for a small q.
template <class M, class A>
inline int64_t decompose(const Tall<A>& t, const Wanted& wanted, int64_t most, A* v, Arena arena) {
  Symmetric<M> s = symmetric<M>(blocks(t.q) * block, arena);
  gram(t, s.a, arena.take<M>(gram_rows * s.n));
  s.n = t.q;
  s.reduce();
  const int64_t count = wanted.least >= 0 ? s.above(wanted.least) : wanted.count;
  if (count > most) return nowhere;
  s.solve(count, count);
  if (hidden(wanted, count, s)) return drowned;
  for (int64_t i = 0; i < t.q * blocks(count) * block; ++i) v[i] = static_cast<A>(s.vectors[i]);
  return count;
}

// v, blocks of q rows, from a row-major (q, count) whose last column comes first.
template <class A>
inline void deal(const A* from, int64_t q, int64_t count, A* v) {
  for (int64_t j = 0; j < blocks(count) * block; ++j)
    for (int64_t l = 0; l < q; ++l)
      v[j / block * q * block + l * block + j % block] = j < count ? from[l * count + count - 1 - j] : A{0};
}

// Turns v, and w = m v (blocks of p rows) with it, so that the columns of w are orthogonal: what is found knows small
// values only up to the rounding of the large ones. spare: as large as w.
template <class A>
inline void refine(const Tall<A>& t, int64_t count, A* v, A* w, A* spare, Arena arena) {
  const int64_t number = blocks(count), wide = number * block;
  A* some = arena.take<A>(wide * block);
  Symmetric<double> s = symmetric<double>(wide, arena);
  double* chunk = arena.take<double>(gram_rows * wide);
  gram(t.p, number, s.a, chunk, [&](int64_t first, int64_t rows, int64_t b, double* to) {
    for (int64_t i = 0; i < rows * block; ++i) to[i] = static_cast<double>(w[(b * t.p + first) * block + i]);
  });
  s.n = count;
  s.reduce();
  s.solve(count, count);
  turn(t.q, v, s, count, spare, some);
  __builtin_memcpy(v, spare, sizeof(A) * static_cast<size_t>(t.q * wide));
  turn(t.p, w, s, count, spare, some);
  __builtin_memcpy(w, spare, sizeof(A) * static_cast<size_t>(t.p * wide));
}

// The same in doubles.
template <class A>
inline int64_t search_in_doubles(const Tall<A>& t, const Wanted& wanted, int64_t most, A* v, Arena arena) {
  double* m = arena.take<double>(t.p * t.q);
  const int64_t wide = blocks(most) * block;
  double* found = arena.take<double>(t.q * wide);
  for (int64_t i = 0; i < t.p * t.q; ++i) m[i] = static_cast<double>(t.m[i]);
  const Tall<double> of{t.p, t.q, m, t.row, t.column, static_cast<double>(t.scale), t.norm2};
  const int64_t count = search(of, wanted, most, found, arena);
  for (int64_t i = 0; count > 0 && i < t.q * blocks(count) * block; ++i) v[i] = static_cast<A>(found[i]);
  return count;
}

// v (blocks of q rows) and w = m v (blocks of p rows) for the wanted values, the largest first. Returns how many, or a
// negative number.
template <class A>
int64_t largest(const Tall<A>& t, const Wanted& wanted, int64_t most, A* v, A* w, A* spare, Arena arena) {
  constexpr int64_t short_side = 96;  // up to here the time is in latencies: doubles take no more of it
  int64_t count = drowned;
  if (t.q > small_side)
    count = search(t, wanted, most, v, arena);
  else if (t.q > short_side)
    count = decompose<A>(t, wanted, most, v, arena);
  const bool rough = count != drowned;
  if (!rough)
    count =
        t.q > small_side ? search_in_doubles(t, wanted, most, v, arena) : decompose<double>(t, wanted, most, v, arena);
  for (int64_t b = 0; b < blocks(count); ++b) times(t, v + b * t.q * block, w + b * t.p * block);
  if (count > 0 && (rough || t.q > small_side)) refine(t, count, v, w, spare, arena);
  return count;
}

// In krylov.cpp, once for all kernels: it is a tenth of them.
extern template int64_t largest(const Tall<float>&, const Wanted&, int64_t, float*, float*, float*, Arena);
extern template int64_t largest(const Tall<double>&, const Wanted&, int64_t, double*, double*, double*, Arena);

}  // namespace crest::CREST_ISA
