#pragma once
// A register of floats loaded from half precision and stored as such: number.h in vectors, to the same bits.
// Part of vec.h, which includes it.

namespace crest::CREST_ISA {

typedef uint32_t Words __attribute__((vector_size(register_bytes)));

inline Words bfloat16_of(Words u) {  // in the low half of each word
  const Words rounded = (u + 0x7fff + (u >> 16 & 1)) >> 16;
  return (u & 0x7fffffff) > 0x7f800000 ? Words{} + 0x7fc0 : rounded;
}

#if defined(__AVX512F__)

template <>
template <>
inline Vec<float> Vec<float>::load(const BFloat16* p) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {(Register)_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16)};
}
template <>
template <>
inline void Vec<float>::store(BFloat16* p) const {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16((__m512i)bfloat16_of((Words)v)));
}
template <>
template <>
inline Vec<float> Vec<float>::load(const Half* p) {
  return {(Register)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
template <>
template <>
inline void Vec<float>::store(Half* p) const {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

#elif defined(__AVX2__)

template <>
template <>
inline Vec<float> Vec<float>::load(const BFloat16* p) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {(Register)_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16)};
}
template <>
template <>
inline void Vec<float>::store(BFloat16* p) const {
  const __m256i words = (__m256i)bfloat16_of((Words)v);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}
template <>
template <>
inline Vec<float> Vec<float>::load(const Half* p) {
  return {(Register)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
template <>
template <>
inline void Vec<float>::store(Half* p) const {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

#elif defined(__aarch64__)

template <>
template <>
inline Vec<float> Vec<float>::load(const BFloat16* p) {
  return {(Register)vshll_n_u16(vld1_u16(&p->bits), 16)};
}
template <>
template <>
inline void Vec<float>::store(BFloat16* p) const {
  vst1_u16(&p->bits, vmovn_u32((uint32x4_t)bfloat16_of((Words)v)));
}
template <>
template <>
inline Vec<float> Vec<float>::load(const Half* p) {
  return {(Register)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(&p->bits)))};
}
template <>
template <>
inline void Vec<float>::store(Half* p) const {
  vst1_u16(&p->bits, vreinterpret_u16_f16(vcvt_f16_f32((float32x4_t)v)));
}

#else  // SSE2

// There is no instruction for halves: `widen` and `narrow` without their branches.

inline Words load_words(const uint16_t* p) {
  return (Words)_mm_unpacklo_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)), _mm_setzero_si128());
}
inline void store_words(uint16_t* p, Words low_halves) {  // The only pack of SSE2 saturates signed numbers.
  const __m128i extended = _mm_srai_epi32(_mm_slli_epi32((__m128i)low_halves, 16), 16);
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi32(extended, extended));
}

template <>
template <>
inline Vec<float> Vec<float>::load(const BFloat16* p) {
  return {(Register)(load_words(&p->bits) << 16)};
}
template <>
template <>
inline void Vec<float>::store(BFloat16* p) const {
  store_words(&p->bits, bfloat16_of((Words)v));
}
template <>
template <>
inline Vec<float> Vec<float>::load(const Half* p) {
  const Words bits = load_words(&p->bits), body = bits & 0x7fff;
  const Words subnormal = (Words)_mm_mul_ps(_mm_cvtepi32_ps((__m128i)body), _mm_set1_ps(0x1p-24f));
  const Words finite = body < 0x400 ? subnormal : (body << 13) + 0x38000000;
  return {(Register)((bits & 0x8000) << 16 | (body >= 0x7c00 ? body << 13 | 0x7f800000 : finite))};
}
template <>
template <>
inline void Vec<float>::store(Half* p) const {
  const Words u = (Words)v, body = u & 0x7fffffff;
  const Words normal = (body - 0x38000000 + 0xfff + (body >> 13 & 1)) >> 13;
  const Words subnormal = (Words)((Register)body + 0.5f) - 0x3f000000;
  const Words finite = body < 0x38800000 ? subnormal : normal;
  const Words special = body > 0x7f800000 ? Words{} + 0x7e00 : Words{} + 0x7c00;
  store_words(&p->bits, (u >> 16 & 0x8000) | (body >= 0x477ff000 ? special : finite));
}

#endif

}  // namespace crest::CREST_ISA
