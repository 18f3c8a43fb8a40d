#pragma once
// The largest eigenvalues of a symmetric tridiagonal matrix and their vectors, sixteen side by side in the lanes of
// registers: bisection by Sturm's counts, then inverse iteration.
#include "blocks.h"
#include "unroll.h"

namespace crest::CREST_ISA {

struct Tridiagonal {
  using V = Vec<double>;
  typedef uint64_t Bits __attribute__((vector_size(register_bytes)));
  static constexpr int registers = block / V::width;
  static constexpr double rounding = 0x1p-52;

  int64_t n;
  double finest;              // what values need not be told apart by
  double *diagonal, *beside;  // (n,), of a matrix whose rows sum to at most 1; beside[n - 1] is 0
  double* squares;            // (n,): of beside, but not 0, which would hide the sign of what comes before

  // counts[j]: how many eigenvalues are at least x[j]. The leading minors change sign once for each that is less.
  void count(const double* x, int64_t* counts) const {
    V at[registers], last[registers], next[registers];
    Bits changes[registers] = {};
    for (int g = 0; g < registers; ++g) {
      at[g] = V::load(x + g * V::width);
      last[g] = V::zero();
      next[g] = V::all(1);
    }
    for (int64_t i = 0; i < n;) {
      constexpr int64_t apart = 8;  // minors shrink by 2^-104 in two steps at most
      for (const int64_t end = min(i + apart, n); i < end; ++i) {
        const V d = V::all(diagonal[i]), s = V::all(i ? -squares[i - 1] : 0);
        for (int g = 0; g < registers; ++g) {
          const V minor = fma(d - at[g], next[g], s * last[g]);
          changes[g] += ((Bits)minor.v ^ (Bits)next[g].v) >> 63;
          last[g] = next[g];
          next[g] = minor;
        }
      }
      for (int g = 0; g < registers; ++g) {  // by the power of two that brings the larger to about 1
        constexpr uint64_t exponent = 0x7ff0000000000000, sign = 0x8000000000000000;
        const V size = {(V::Register)((Bits)last[g].v & ~sign) + (V::Register)((Bits)next[g].v & ~sign)};
        const V scale = {(V::Register)(0x7fe0000000000000 - ((Bits)size.v & exponent))};
        last[g] = last[g] * scale;
        next[g] = next[g] * scale;
      }
    }
    for (int g = 0; g < registers; ++g)
      for (int l = 0; l < V::width; ++l) counts[g * V::width + l] = n - static_cast<int64_t>(changes[g][l]);
  }

  // How many eigenvalues are at least x.
  int64_t count(double x) const {
    double all[block];
    int64_t counts[block];
    for (double& one : all) one = x;
    count(all, counts);
    return counts[0];
  }

  // values[j]: the (first + j)-th largest, none below 0 by more than rounding, to eight digits or `finest`; beyond n,
  // the last again.
  void bisect(int64_t first, double* values) const {
    double low[block], high[block], middle[block];
    int64_t counts[block];
    for (int j = 0; j < block; ++j) low[j] = -0x1p-16, high[j] = 1 + rounding;
    for (bool apart = true; apart;) {
      for (int j = 0; j < block; ++j) middle[j] = 0.5 * (low[j] + high[j]);
      count(middle, counts);
      apart = false;
      for (int j = 0; j < block; ++j) {
        const bool above = counts[j] > min(first + j, n - 1);
        low[j] = above ? middle[j] : low[j];
        high[j] = above ? high[j] : middle[j];
        apart |= high[j] - low[j] > max(0x1p-27 * low[j], finest);
      }
    }
    for (int j = 0; j < block; ++j) values[j] = 0.5 * (low[j] + high[j]);
  }

  // z = (T - values)^-1 z, column by column: elimination with row exchanges. scratch: 3 blocks of n rows.
  void invert(const double* values, double* z, double* scratch) const {
    double *inverse = scratch, *first = inverse + n * block, *second = first + n * block;
    constexpr uint64_t sign = 0x8000000000000000;
    for (int g = 0; g < registers; ++g) {
      const auto either = [](Bits mask, V a, V b)
                              CREST_INLINE { return V{(V::Register)(((Bits)a.v & mask) | ((Bits)b.v & ~mask))}; };
      const auto size = [](V x) CREST_INLINE { return V{(V::Register)((Bits)x.v & ~sign)}; };
      const int64_t at = g * V::width;
      const V value = V::load(values + at), zero = V::zero();
      V one = V::all(diagonal[0]) - value, two = V::all(beside[0]), right = V::load(z + at);
      for (int64_t i = 0; i < n; ++i) {
        const int64_t here = i * block + at;
        const bool more = i + 1 < n;
        const V e = V::all(beside[i]), d = more ? V::all(diagonal[i + 1]) - value : zero;
        const V f = more ? V::all(beside[i + 1]) : zero, below = more ? V::load(z + here + block) : zero;
        const Bits exchange = (Bits)(size(one).v < size(e).v);
        V pivot = either(exchange, e, one);
        const V other = either(exchange, one, e);
        pivot = either((Bits)(size(pivot).v < V::all(rounding).v), V::all(rounding), pivot);
        const V inverted = {V::all(1).v / pivot.v}, factor = other * inverted;
        const V p = either(exchange, d, two), q = either(exchange, f, zero), b = either(exchange, below, right);
        inverted.store(inverse + here);
        p.store(first + here);
        q.store(second + here);
        b.store(z + here);
        one = either(exchange, two, d) - factor * p;
        two = either(exchange, zero, f) - factor * q;
        right = either(exchange, right, below) - factor * b;
      }
      V last = zero, next = zero;
      for (int64_t i = n - 1; i >= 0; --i) {
        const int64_t here = i * block + at;
        const V x = (V::load(z + here) - V::load(first + here) * next - V::load(second + here) * last) *
                    V::load(inverse + here);
        x.store(z + here);
        last = next;
        next = x;
      }
    }
  }

  // The vectors of `columns` values as block b of z, orthogonal to those before it.
  void vectors(const double* values, int64_t b, int columns, double* z, double* scratch) const {
    double *own = z + b * n * block, r[block * block];
    Random random{static_cast<uint64_t>(b)};
    for (int64_t i = 0; i < n * block; ++i) own[i] = random.next();
    // Twice makes the rest as small as rounding; more, where equal values gave the same vector.
    invert(values, own, scratch);
    for (int round = 0; round < 3; ++round) {
      invert(values, own, scratch);
      if (!orthonormalise<double>(n, z, b, own, nullptr, r, columns, random)) break;
    }
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = columns; j < block; ++j) own[i * block + j] = 0;
  }
};

}  // namespace crest::CREST_ISA
