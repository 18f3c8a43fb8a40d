#pragma once
// Loops that must be unrolled, so that what they index stays in registers; and the first lanes of a register.
#include <utility>  // for integer_sequence, a type

#include "vec.h"

namespace crest::CREST_ISA {

template <int i>
struct Index {
  constexpr operator int() const { return i; }
};

#define CREST_INLINE __attribute__((always_inline))

template <class F, int... i>
CREST_INLINE inline void unroll(const F& f, std::integer_sequence<int, i...>) {
  (f(Index<i>{}), ...);
}

// f(Index<0>{}), ..., f(Index<n - 1>{}). Write f as [&](auto i) CREST_INLINE { ... }.
template <int n, class F>
CREST_INLINE inline void unroll(const F& f) {
  unroll(f, std::make_integer_sequence<int, n>{});
}

// v, in a register. Compilers load what goes into several products again for each of them, which costs time where loads
// go across cache lines.
template <class V>
CREST_INLINE inline V held(V v) {
#if defined(__x86_64__)
  asm("" : "+v"(v.v));
#elif defined(__aarch64__)
  asm("" : "+w"(v.v));
#endif
  return v;
}

// The first `count` lanes, and zeros.
template <class V, class T>
inline V load_first(const T* p, int count) {
  if (count == V::width) return V::load(p);
  T lanes[V::width] = {};
  for (int i = 0; i < count; ++i) lanes[i] = p[i];
  return V::load(lanes);
}

template <class V, class T>
inline void store_first(V v, T* p, int count) {
  if (count == V::width) return v.store(p);
  T lanes[V::width];
  v.store(lanes);
  for (int i = 0; i < count; ++i) p[i] = lanes[i];
}

#if defined(__AVX512F__)
template <>
inline Vec<float> load_first<Vec<float>>(const float* p, int count) {
  return {(Vec<float>::Register)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), p)};
}
template <>
inline void store_first(Vec<float> v, float* p, int count) {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << count) - 1), (__m512)v.v);
}
#elif defined(__AVX2__)
inline __m256i first_lanes(int count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
template <>
inline Vec<float> load_first<Vec<float>>(const float* p, int count) {
  return {(Vec<float>::Register)_mm256_maskload_ps(p, first_lanes(count))};
}
// In halves: the one instruction that could, AMD's processors take forty steps for.
template <>
inline void store_first(Vec<float> v, float* p, int count) {
  if (count == 8) return v.store(p);
  __m128 half = _mm256_castps256_ps128((__m256)v.v);
  if (count & 4) {
    _mm_storeu_ps(p, half);
    p += 4, half = _mm256_extractf128_ps((__m256)v.v, 1);
  }
  if (count & 2) {
    _mm_storel_pi(reinterpret_cast<__m64*>(p), half);
    p += 2, half = _mm_movehl_ps(half, half);
  }
  if (count & 1) _mm_store_ss(p, half);
}
#endif

// Lanes [first, last) of a register: load reads no other number, and gives zeros for them.
template <class V>
class Lanes;

#if defined(__AVX512F__)
inline uint64_t numbers_before(int64_t n) { return (uint64_t{1} << min(max(n, int64_t{0}), int64_t{63})) - 1; }

template <>
class Lanes<Vec<float>> {
 public:
  Lanes() = default;
  Lanes(int64_t first, int64_t last) : mask_(static_cast<__mmask16>(numbers_before(last) & ~numbers_before(first))) {}
  explicit Lanes(uint64_t lanes) : mask_(static_cast<__mmask16>(lanes)) {}
  Vec<float> load(const float* p) const { return {(Vec<float>::Register)_mm512_maskz_loadu_ps(mask_, p)}; }
  void store(Vec<float> v, float* p) const { _mm512_mask_storeu_ps(p, mask_, (__m512)v.v); }

 private:
  __mmask16 mask_;
};

// Of the 63 numbers from some place on, the ones from `first` to before `last`: what registers hold of them.
class Stretch {
 public:
  Stretch(int64_t first, int64_t last) : bits_(numbers_before(last) & ~numbers_before(first)) {}
  Lanes<Vec<float>> from(int number) const { return Lanes<Vec<float>>(bits_ >> number); }

 private:
  uint64_t bits_;
};
#elif defined(__AVX2__)
template <>
class Lanes<Vec<float>> {
 public:
  Lanes() = default;
  Lanes(int64_t first, int64_t last)
      : mask_(_mm256_andnot_si256(first_lanes(limit(first)), first_lanes(limit(last)))) {}
  Vec<float> load(const float* p) const { return {(Vec<float>::Register)_mm256_maskload_ps(p, mask_)}; }

 private:
  static int limit(int64_t lane) { return static_cast<int>(min(max(lane, int64_t{0}), int64_t{8})); }
  __m256i mask_;
};
#else
template <>
class Lanes<Vec<float>> {
 public:
  Lanes() = default;
  Lanes(int64_t first, int64_t last) : first_(max(first, int64_t{0})), last_(min(last, int64_t{Vec<float>::width})) {}
  Vec<float> load(const float* p) const {
    float lanes[Vec<float>::width] = {};
    for (int64_t i = first_; i < last_; ++i) lanes[i] = p[i];
    return Vec<float>::load(lanes);
  }

 private:
  int64_t first_, last_;
};
#endif

#if !defined(__AVX512F__)
class Stretch {
 public:
  Stretch(int64_t first, int64_t last) : first_(first), last_(last) {}
  Lanes<Vec<float>> from(int number) const { return Lanes<Vec<float>>(first_ - number, last_ - number); }

 private:
  int64_t first_, last_;
};
#endif

}  // namespace crest::CREST_ISA
