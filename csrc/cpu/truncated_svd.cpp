#include "../truncated_svd.h"

#include "krylov.h"

namespace crest::CREST_ISA {
namespace {

template <class A>
Search one(const TruncatedSvd& a, int64_t i, Arena arena) {
  Tall<A> t = tall(static_cast<const A*>(a.a) + i * a.r * a.c, a.r, a.c);
  if (!measure(t)) return Search::not_finite;
  const int64_t p = t.p, q = t.q, k = a.k, wide = blocks(k) * block;
  if (!a.basis && q > small_side && !worth_a_search(q, k)) return Search::not_found;
  A *v = arena.take<A>(q * wide), *w = arena.take<A>(p * wide), *spare = arena.take<A>(p * wide);
  if (a.basis) {
    deal(static_cast<const A*>(a.basis), q, k, v);
    for (int64_t j = 0; j < wide; j += block) times(t, v + j * q, w + j * p);
  } else if (largest(t, {k, -1, 1e-5, sizeof(A) == 4 ? 0x1p-40 : 0x1p-46}, k, v, w, spare, arena) < 0) {
    return Search::not_found;
  }

  // The longer side's vectors are w over the values: orthonormal but for rounding, which is all of those near zero.
  A *u = static_cast<A*>(a.u) + i * a.r * k, *s = static_cast<A*>(a.s) + i * k;
  A* vh = static_cast<A*>(a.vh) + i * k * a.c;
  A r[block * block];
  Random random;
  for (int64_t j = 0; j < k; j += block) {
    const int columns = static_cast<int>(min(k - j, block));
    orthonormalise<A>(p, w, j / block, w + j * p, nullptr, r, columns, random);
    for (int l = 0; l < columns; ++l) s[j + l] = r[l * block + l] / t.scale;
  }
  for (int64_t j = 1; j < k; ++j) s[j] = min(s[j], s[j - 1]);  // where rounding orders them
  const A *left = a.r < a.c ? v : w, *right = a.r < a.c ? w : v;
  for (int64_t j = 0; j < k; ++j) {
    const A *l = left + j / block * a.r * block + j % block, *to = right + j / block * a.c * block + j % block;
    for (int64_t x = 0; x < a.r; ++x) u[x * k + j] = l[x * block];
    for (int64_t x = 0; x < a.c; ++x) vh[j * a.c + x] = to[x * block];
  }
  return Search::found;
}

}  // namespace

void truncated_svd(const TruncatedSvd& a, double* work, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i)
    a.state[i] = a.dtype == Dtype::float32 ? one<float>(a, i, {work}) : one<double>(a, i, {work});
}

}  // namespace crest::CREST_ISA
