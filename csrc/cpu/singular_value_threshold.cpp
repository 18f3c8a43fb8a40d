#include "../singular_value_threshold.h"

#include "krylov.h"

namespace crest::CREST_ISA {
namespace {

template <class A>
Search one(const SingularValueThreshold& a, int64_t i, Arena arena) {
  Tall<A> t = tall(static_cast<const A*>(a.a) + i * a.r * a.c, a.r, a.c);
  A* out = static_cast<A*>(a.out) + i * a.r * a.c;
  if (!measure(t)) return Search::not_finite;
  const double threshold = a.threshold * static_cast<double>(t.scale), least = threshold * threshold;
  int64_t count = 0;
  const int64_t wide = blocks(a.most) * block;
  A *v = arena.take<A>(t.q * wide), *w = arena.take<A>(t.p * wide), *spare = arena.take<A>(t.p * wide);
  if (a.basis) {
    count = a.most;
    deal(static_cast<const A*>(a.basis), t.q, count, v);
    for (int64_t j = 0; j < count; j += block) times(t, v + j * t.q, w + j * t.p);
  } else if (t.norm2 > least) {
    count = largest(t, {0, least, 1e-5, sizeof(A) == 4 ? 0x1p-40 : 0x1p-46}, a.most, v, w, spare, arena);
    if (count < 0) return Search::not_found;
  }

  // The columns of w are s_j u_j: times 1 - threshold / s_j.
  for (int64_t j = 0; j < blocks(count) * block; ++j) {
    A* column = w + j / block * t.p * block + j % block;
    double sum = 0;
    for (int64_t l = 0; l < t.p; ++l)
      sum += static_cast<double>(column[l * block]) * static_cast<double>(column[l * block]);
    const double s = __builtin_sqrt(sum);
    const A share = s > threshold ? static_cast<A>((1 - threshold / s) / static_cast<double>(t.scale)) : A{0};
    for (int64_t l = 0; l < t.p; ++l) column[l * block] *= share;
  }
  const A *left = a.r < a.c ? v : w, *right = a.r < a.c ? w : v;
  A x[block * block], *edge = spare;
  for (int64_t j = 0; j < a.c; j += block) {
    const int64_t columns = min(a.c - j, block);
    A* to = columns == block ? out + j : edge;
    const int64_t row = columns == block ? a.c : block;
    for (int64_t b = 0; b < max<int64_t>(blocks(count), 1); ++b) {
      for (int64_t l = 0; l < block; ++l)
        for (int64_t m = 0; m < block; ++m)
          x[l * block + m] = m < columns && count ? right[b * a.c * block + (j + m) * block + l] : A{0};
      const Columns<A> of{left + b * a.r * block};
      b == 0 ? product<false>(A{1}, a.r, count ? block : 0, of, x, block, to, row)
             : product<true>(A{1}, a.r, block, of, x, block, to, row);
    }
    if (to == edge)
      for (int64_t l = 0; l < a.r; ++l)
        for (int64_t m = 0; m < columns; ++m) out[l * a.c + j + m] = edge[l * block + m];
  }
  return Search::found;
}

}  // namespace

void singular_value_threshold(const SingularValueThreshold& a, double* work, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i)
    a.state[i] = a.dtype == Dtype::float32 ? one<float>(a, i, {work}) : one<double>(a, i, {work});
}

}  // namespace crest::CREST_ISA
