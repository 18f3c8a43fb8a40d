#pragma once
// Vec<A>: as many numbers of type A (float or double) as one register of this instruction set holds. Arithmetic is the
// compiler's vector extension, so every instruction set shares it; only half precision, compress and sums differ.
// One<A> is a Vec of one number: what is left over after the last full register runs the same source.
// Nothing here may be emitted outside crest::<isa>: no standard library functions in csrc/cpu.
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "number.h"

namespace crest::CREST_ISA {

#if defined(__AVX512F__)
constexpr int register_bytes = 64, register_count = 32;
#elif defined(__AVX2__)
constexpr int register_bytes = 32, register_count = 16;
#elif defined(__aarch64__)
constexpr int register_bytes = 16, register_count = 32;  // NEON
#else
constexpr int register_bytes = 16, register_count = 16;  // SSE2
#endif

template <class A>
constexpr A min(A a, A b) {
  return b < a ? b : a;
}
template <class A>
constexpr A max(A a, A b) {
  return a < b ? b : a;
}

template <class A, int bytes = register_bytes>
struct Vec {
  static constexpr int width = bytes / static_cast<int>(sizeof(A));
  typedef A Register __attribute__((vector_size(bytes)));
  Register v;

  static Vec all(A x) { return {x - Register{}}; }
  static Vec zero() { return {Register{}}; }

  static Vec load(const A* p) {
    Vec r;
    std::memcpy(&r.v, p, sizeof r.v);
    return r;
  }
  void store(A* p) const { std::memcpy(p, &v, sizeof v); }

  // Half precision, and the same for a double's double.
  template <class T>
  static Vec load(const T* p) {
    A x[width];
    for (int i = 0; i < width; ++i) x[i] = widen(p[i]);
    return load(x);
  }
  template <class T>
  void store(T* p) const {
    for (int i = 0; i < width; ++i) narrow(v[i], p[i]);
  }

  // Zero where the mask drops a lane. A dropped NaN or infinity is zero as well.
  Vec where(const bool* mask) const;

  friend Vec operator+(Vec a, Vec b) { return {a.v + b.v}; }
  friend Vec operator-(Vec a, Vec b) { return {a.v - b.v}; }
  friend Vec operator*(Vec a, Vec b) { return {a.v * b.v}; }
  friend Vec operator/(Vec a, Vec b) { return {a.v / b.v}; }

  A sum() const {
    A lanes[width];
    store(lanes);
    for (int half = width / 2; half; half /= 2)
      for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
    return lanes[0];
  }
};

template <class A>
using One = Vec<A, sizeof(A)>;

template <class A, int bytes>
inline Vec<A, bytes> Vec<A, bytes>::where(const bool* mask) const {
  Vec r;
  for (int i = 0; i < width; ++i) r.v[i] = mask[i] ? v[i] : A{0};
  return r;
}

// step(Vec<A>{}, i) for each full register in [begin, end), then step(One<A>{}, i) for each number left.
template <class A, class Step>
inline void for_each_register(int64_t begin, int64_t end, const Step& step) {
  int64_t i = begin;
  for (; i + Vec<A>::width <= end; i += Vec<A>::width) step(Vec<A>{}, i);
  for (; i < end; ++i) step(One<A>{}, i);
}

// step(V{}, i) for registers that cover [0, count), the largest that fit: the last one begins early, so as to be whole.
template <class A, int bytes = register_bytes, class Step>
__attribute__((always_inline)) inline void for_each_overlapping(int64_t count, const Step& step) {
  using V = Vec<A, bytes>;
  if (count >= V::width)
    for (int64_t i = 0; i < count; i += V::width) step(V{}, min(i, count - V::width));
  else if constexpr (bytes > 16)
    for_each_overlapping<A, bytes / 2>(count, step);
  else
    for (int64_t i = 0; i < count; ++i) step(One<A>{}, i);
}

// One number's square root, by its instruction: the compiler's own would call the library for a negative one.
#if defined(__x86_64__)
inline float sqrt(float x) { return _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(x))); }
inline double sqrt(double x) { return _mm_cvtsd_f64(_mm_sqrt_sd(_mm_setzero_pd(), _mm_set_sd(x))); }
#elif defined(__aarch64__)
inline float sqrt(float x) { return vget_lane_f32(vsqrt_f32(vdup_n_f32(x)), 0); }
inline double sqrt(double x) { return vget_lane_f64(vsqrt_f64(vdup_n_f64(x)), 0); }
#endif

template <int bytes>
inline Vec<float, bytes> sqrt(Vec<float, bytes> x) {
  if constexpr (bytes == sizeof(float)) return Vec<float, bytes>::all(sqrt(x.v[0]));
#if defined(__AVX512F__)
  else
    return {(decltype(x.v))_mm512_sqrt_ps((__m512)x.v)};
#elif defined(__AVX2__)
  else
    return {(decltype(x.v))_mm256_sqrt_ps((__m256)x.v)};
#elif defined(__aarch64__)
  else
    return {(decltype(x.v))vsqrtq_f32((float32x4_t)x.v)};
#else
  else
    return {(decltype(x.v))_mm_sqrt_ps((__m128)x.v)};
#endif
}

// Asks for the cache line that a loop over long arrays reads so far from here. The hardware's own prefetcher stops at
// each page and lags behind four streams: this is worth a tenth of the time. Past the end it does nothing.
template <int bytes = 2048>
inline void prefetch(const void* p) {
  __builtin_prefetch(static_cast<const char*>(p) + bytes);
}

// a * b + c in one instruction where there is one: the build sets -ffp-contract=fast.
template <class A, int bytes>
inline Vec<A, bytes> fma(Vec<A, bytes> a, Vec<A, bytes> b, Vec<A, bytes> c) {
  return {a.v * b.v + c.v};
}

#if defined(__AVX512F__)

template <>
inline Vec<float> Vec<float>::where(const bool* mask) const {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(mask));
  return {(Register)_mm512_maskz_mov_ps(_mm_test_epi8_mask(bytes, bytes), (__m512)v)};
}
template <>
inline Vec<double> Vec<double>::where(const bool* mask) const {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(mask));
  return {(Register)_mm512_maskz_mov_pd(static_cast<__mmask8>(_mm_test_epi8_mask(bytes, bytes)), (__m512d)v)};
}
template <>
inline float Vec<float>::sum() const {
  return _mm512_reduce_add_ps((__m512)v);
}

#elif defined(__AVX2__)

template <>
inline Vec<float> Vec<float>::where(const bool* mask) const {
  const __m256i lanes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(mask)));
  return {(Register)_mm256_and_ps(_mm256_castsi256_ps(_mm256_sub_epi32(_mm256_setzero_si256(), lanes)), (__m256)v)};
}
template <>
inline Vec<double> Vec<double>::where(const bool* mask) const {
  int32_t bytes;
  std::memcpy(&bytes, mask, sizeof bytes);
  const __m256i lanes = _mm256_cvtepu8_epi64(_mm_cvtsi32_si128(bytes));
  return {(Register)_mm256_and_pd(_mm256_castsi256_pd(_mm256_sub_epi64(_mm256_setzero_si256(), lanes)), (__m256d)v)};
}
template <>
inline float Vec<float>::sum() const {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

#elif defined(__aarch64__)

template <>
inline Vec<float> Vec<float>::where(const bool* mask) const {
  uint32_t bytes;
  std::memcpy(&bytes, mask, sizeof bytes);
  const uint32x4_t lanes = vmovl_u16(vget_low_u16(vmovl_u8(vcreate_u8(bytes))));
  return {(Register)vandq_u32((uint32x4_t)v, vtstq_u32(lanes, lanes))};
}
template <>
inline Vec<double> Vec<double>::where(const bool* mask) const {
  const uint64x2_t lanes = {mask[0], mask[1]};
  return {(Register)vandq_u64((uint64x2_t)v, vtstq_u64(lanes, lanes))};
}

#else  // SSE2

template <>
inline Vec<float> Vec<float>::where(const bool* mask) const {
  int32_t bytes;
  std::memcpy(&bytes, mask, sizeof bytes);
  const __m128i zero = _mm_setzero_si128(), words = _mm_unpacklo_epi8(_mm_cvtsi32_si128(bytes), zero);
  const __m128i dropped = _mm_cmpeq_epi32(_mm_unpacklo_epi16(words, zero), zero);
  return {(Register)_mm_andnot_ps(_mm_castsi128_ps(dropped), (__m128)v)};
}
template <>
inline Vec<double> Vec<double>::where(const bool* mask) const {
  const __m128i kept = _mm_set_epi64x(-int64_t{mask[1]}, -int64_t{mask[0]});
  return {(Register)_mm_and_pd(_mm_castsi128_pd(kept), (__m128d)v)};
}

#endif

// ---- calling a templated kernel with the types of an op's arguments ----

template <class T>
struct Of {
  using type = T;
};

// f(Of<float>{}), f(Of<double>{}), f(Of<BFloat16>{}) or f(Of<Half>{}).
template <class F>
inline void dispatch(Dtype dtype, const F& f) {
  switch (dtype) {
    case Dtype::float32: return f(Of<float>{});
    case Dtype::float64: return f(Of<double>{});
    case Dtype::bfloat16: return f(Of<BFloat16>{});
    case Dtype::float16: return f(Of<Half>{});
  }
}

}  // namespace crest::CREST_ISA

#include "half.h"
