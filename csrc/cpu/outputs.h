#pragma once
// What the kernels share that multiply a few pixels by two registers of outputs, whose channels come last.
#include "activation.h"
#include "unroll.h"

namespace crest::CREST_ISA {

// Sums of so many pixels and of two registers of outputs fill the registers, beside two of weight and one of x.
#if defined(__AVX512F__)
constexpr int most_pixels = 14;
#elif defined(__aarch64__)
constexpr int most_pixels = 12;
#else
constexpr int most_pixels = 6;
#endif

// Channels that a loop's step takes: its own instructions cost a tenth of the time where a channel has 12 products.
constexpr int channels_at_once = most_pixels > 6 ? 1 : 2;

// f(registers, o, count, start) for each pair of registers of `outputs` outputs: registers is 2, or 1 where one will
// do; o is the pair's first output, of `count`.
template <class F>
inline void for_each_pair(int64_t outputs, const float* bias, const F& f) {
  using V = Vec<float>;
  for (int64_t o = 0; o < outputs; o += 2 * V::width) {
    const int count = static_cast<int>(min(outputs - o, int64_t{2 * V::width}));
    V start[2] = {V::zero(), V::zero()};
    if (bias) {
      start[0] = load_first<V>(bias + o, min(count, V::width));
      start[1] = load_first<V>(bias + o + V::width, max(count - V::width, 0));
    }
    if (count > V::width)
      f(Index<2>{}, o, count, start);
    else
      f(Index<1>{}, o, count, start);
  }
}

// The sums (pixels, registers) of `count` outputs to y (pixels, m).
template <int pixels, int registers>
CREST_INLINE inline void store_outputs(const Vec<float>* sum, Activation activation, float* y, int64_t m, int count) {
  using V = Vec<float>;
  unroll<pixels * registers>([&](auto i) CREST_INLINE {
    constexpr int v = i % registers;
    float* to = y + i / registers * m + v * V::width;
    store_first(activate(sum[i], activation), to, v + 1 < registers ? V::width : count - v * V::width);
  });
}

}  // namespace crest::CREST_ISA
