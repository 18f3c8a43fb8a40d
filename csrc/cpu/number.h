#pragma once
// One number: half precision as float and back, without library or instructions. Rounds to nearest, ties to even.
#include <cstdint>
#include <cstring>

#include "../dtype.h"

namespace crest::CREST_ISA {

template <class To, class From>
inline To bits_of(From x) {
  static_assert(sizeof(To) == sizeof(From));
  To y;
  std::memcpy(&y, &x, sizeof y);
  return y;
}

inline float widen(float x) { return x; }
inline double widen(double x) { return x; }
inline float widen(BFloat16 x) { return bits_of<float>(uint32_t{x.bits} << 16); }

inline float widen(Half x) {
  const uint32_t sign = uint32_t{x.bits & 0x8000u} << 16, body = x.bits & 0x7fffu;
  if (body >= 0x7c00) return bits_of<float>(sign | 0x7f800000 | body << 13);  // infinity, NaN
  // No step meets a subnormal float: those are slow, and zero where a user flushes them.
  const float size = body < 0x400 ? static_cast<float>(body) * 0x1p-24f : bits_of<float>((body << 13) + 0x38000000);
  return bits_of<float>(sign | bits_of<uint32_t>(size));
}

inline void narrow(float x, float& y) { y = x; }
inline void narrow(double x, double& y) { y = x; }

inline void narrow(float x, BFloat16& y) {  // to nearest, ties to even
  const uint32_t u = bits_of<uint32_t>(x);
  y.bits = x != x ? 0x7fc0 : static_cast<uint16_t>((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

inline void narrow(float x, Half& y) {  // to nearest, ties to even
  const uint32_t u = bits_of<uint32_t>(x), sign = u >> 16 & 0x8000, body = u & 0x7fffffff;
  if (body > 0x7f800000) {
    y.bits = static_cast<uint16_t>(sign | 0x7e00);
  } else if (body >= 0x477ff000) {  // rounds to 65536 or more
    y.bits = static_cast<uint16_t>(sign | 0x7c00);
  } else if (body < 0x38800000) {  // subnormal: adding 0.5 aligns the bits, and rounds them
    const float aligned = bits_of<float>(body) + 0.5f;
    y.bits = static_cast<uint16_t>(sign | (bits_of<uint32_t>(aligned) - 0x3f000000));
  } else {
    y.bits = static_cast<uint16_t>(sign | (body - 0x38000000 + 0xfff + (body >> 13 & 1)) >> 13);
  }
}

// The type sums are kept in.
template <class T>
using Acc = decltype(widen(T{}));

}  // namespace crest::CREST_ISA
