#pragma once
// h_k of Dynamic Network Surgery (eq. 3): 0 below low, 1 from high on, the old mask between. A NaN weight keeps its
// mask, since no comparison with it holds.
#include "vec.h"

namespace crest::CREST_ISA {

// A byte of a mask for each lane.
template <int width>
struct MaskBytes {
  typedef uint8_t type __attribute__((vector_size(width)));
};

// 255 for each lane that is all ones, 0 for each that is zero.
template <int width, class Lanes>
inline auto bytes_of(Lanes lanes) {
  typename MaskBytes<width>::type y;
#if defined(__AVX512F__)
  y = __builtin_convertvector(lanes, decltype(y));
#else
  if constexpr (sizeof lanes == register_bytes) {  // by hand: GCC would convert lane by lane
#if defined(__AVX2__)
    __m128i x = _mm_packs_epi32(_mm256_castsi256_si128((__m256i)lanes), _mm256_extracti128_si256((__m256i)lanes, 1));
    for (int i = width; i < 16; i *= 2) x = _mm_packs_epi16(x, x);
#elif defined(__x86_64__)
    __m128i x = _mm_packs_epi32((__m128i)lanes, (__m128i)lanes);
    for (int i = width; i < 8; i *= 2) x = _mm_packs_epi16(x, x);
#else
    int8x16_t x = (int8x16_t)lanes;
    for (int i = width; i < 16; i *= 2) x = vuzp1q_s8(x, x);  // each second byte
#endif
    std::memcpy(&y, &x, sizeof y);
  } else {
    y = __builtin_convertvector(lanes, decltype(y));
  }
#endif
  return y;
}

// Updates mask[0, width), the mask of the weights in one register.
template <class A, int bytes>
inline void hysteresis(Vec<A, bytes> weight, bool* mask, A low, A high) {
  using V = Vec<A, bytes>;
  typename MaskBytes<V::width>::type m;
  std::memcpy(&m, mask, sizeof m);
  const typename V::Register size = weight.v < 0 ? -weight.v : weight.v;
  const auto drop = bytes_of<V::width>(size < V::all(low).v), keep = bytes_of<V::width>(size >= V::all(high).v);
  m = ((m & ~drop) | keep) & 1;
  std::memcpy(mask, &m, sizeof m);
}

}  // namespace crest::CREST_ISA
