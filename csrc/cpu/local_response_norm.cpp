#include "../local_response_norm.h"

#include "vec.h"

namespace crest::CREST_ISA {

// Down the channels of a block, so that x is read from memory once.
void local_response_norm(const LocalResponseNorm& a, int64_t begin, int64_t end) {
  for (int64_t part = begin; part < end; ++part) {
    const int64_t image = part / a.blocks(), first = part % a.blocks() * a.block;
    const int64_t last = min(first + a.block, a.positions), at = image * a.c * a.positions;
    for (int64_t c = 0; c < a.c; ++c) {
      const float* from = a.x + at + max(c - a.before, int64_t{0}) * a.positions;
      const float* to = a.x + at + min(c + a.after, a.c - 1) * a.positions;
      const int64_t own = at + c * a.positions;
      for_each_register<float>(first, last, [&](auto v, int64_t i) {
        using V = decltype(v);
        V sum = V::zero();
        for (const float* x = from + i; x <= to + i; x += a.positions) {
          const V value = V::load(x);
          sum = value * value + sum;
        }
        const V root = sqrt(V::all(a.scale) * sum + V::all(a.k));
        (V::load(a.x + own + i) / (root * sqrt(root))).store(a.y + own + i);
      });
    }
  }
}

}  // namespace crest::CREST_ISA
