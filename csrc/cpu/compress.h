#pragma once
// Kept weights side by side, with their columns.
#include "vec.h"

namespace crest::CREST_ISA {

// The first `count` (<= 64) mask bytes, which are 0 or 1, as bits.
inline uint64_t bits(const bool* mask, int count) {
#if defined(__AVX512F__)
  if (count == 64) {
    const __m512i bytes = _mm512_loadu_si512(mask);
    return _mm512_test_epi8_mask(bytes, bytes);
  }
#endif
  uint64_t all = 0;
  for (int i = 0; i < count; i += 8) {
    uint64_t bytes = 0;
    std::memcpy(&bytes, mask + i, min(count - i, 8));
    all |= (bytes * 0x0102040810204080u >> 56) << i;  // the product gathers the bytes' lowest bits at its top
  }
  return all;
}

// Writes the kept ones of n weights to values, widened, and their positions to index; returns how many. Both outputs
// need room for one register more. Meanwhile it asks for the row below, k further, which the caller compresses next.
template <class T, class A>
inline int compress(const T* weight, const bool* mask, int n, int64_t k, A* values, uint16_t* index) {
  int count = 0, i = 0;
#if defined(__AVX512F__)
  if constexpr (sizeof(A) == 4) {
    __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (; i + 16 <= n; i += 16) {
      __builtin_prefetch(weight + k + i);
      if (i % 64 == 0) __builtin_prefetch(mask + k + i);
      const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(mask + i));
      const __mmask16 kept = _mm_test_epi8_mask(bytes, bytes);
      const Vec<float> w = Vec<float>::load(weight + i);
      // To a register first: compressing straight to memory is slow on AMD.
      _mm512_storeu_ps(values + count, _mm512_maskz_compress_ps(kept, (__m512)w.v));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(index + count),
                          _mm512_cvtepi32_epi16(_mm512_maskz_compress_epi32(kept, lane)));
      count += __builtin_popcount(kept);
      lane = _mm512_add_epi32(lane, _mm512_set1_epi32(16));
    }
  }
#endif
  for (; i < n; i += 64) {
    for (int line = 0; line < static_cast<int>(sizeof(T)); ++line)
      __builtin_prefetch(reinterpret_cast<const char*>(weight + k + i) + 64 * line);
    __builtin_prefetch(mask + k + i);
    for (uint64_t left = bits(mask + i, min(n - i, 64)); left; left &= left - 1) {
      const int j = i + __builtin_ctzll(left);
      values[count] = widen(weight[j]);
      index[count++] = static_cast<uint16_t>(j);
    }
  }
  return count;
}

// Row i: the positions of the bits of i, lowest first.
struct BitTable {
  uint32_t at[256][8] = {};
  constexpr BitTable() {
    for (int i = 0; i < 256; ++i)
      for (int bit = 0, n = 0; bit < 8; ++bit)
        if (i >> bit & 1) at[i][n++] = static_cast<uint32_t>(bit);
  }
};
constexpr BitTable bit_table;

// Writes first + the positions of the set bits to index, and up to 16 numbers more; returns where it stopped.
inline uint32_t* positions(uint64_t set, int first, uint32_t* index) {
  constexpr int width = register_bytes == 64 ? 16 : 8;
  typedef uint32_t Words __attribute__((vector_size(4 * width)));
  Words base = Words{} + static_cast<uint32_t>(first);
#if defined(__AVX512F__)
  base += (Words)_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
#endif
  for (int i = 0; i < 64; i += width, base += width) {
    // Counted from the start each time: a chain of counts would be the longest path.
    uint32_t* to = index + __builtin_popcountll(set & ((uint64_t{1} << i) - 1));
#if defined(__AVX512F__)
    const Words at = (Words)_mm512_maskz_compress_epi32(static_cast<__mmask16>(set >> i), (__m512i)base);
#else
    Words at;
    std::memcpy(&at, bit_table.at[set >> i & 255], sizeof at);
    at += base;
#endif
    std::memcpy(to, &at, sizeof at);
  }
  return index + __builtin_popcountll(set);
}

// The way back: n (<= 64) numbers, those whose bit is set from values in their order, the others zero. `stream` asks to
// pass by the caches, for what is far larger than them: out must then be aligned as a cache line is.
template <bool stream, class A, class T>
inline void expand(const A* values, uint64_t set, int n, T* out) {
  int i = 0;
#if defined(__AVX512F__)
  if constexpr (sizeof(A) == 4) {
    for (; i + 16 <= n; i += 16, set >>= 16) {
      const __m512 v = _mm512_maskz_expand_ps(static_cast<__mmask16>(set), _mm512_loadu_ps(values));
      if constexpr (stream && sizeof(T) == 4)
        _mm512_stream_ps(out + i, v);
      else
        Vec<float>{(Vec<float>::Register)v}.store(out + i);
      values += __builtin_popcount(set & 0xffff);
    }
    if (i == n) return;
  }
#endif
  std::memset(out + i, 0, (n - i) * sizeof(T));
  for (; set; set &= set - 1) narrow(*values++, out[i + __builtin_ctzll(set)]);
}

// What was streamed is there for other threads.
inline void end_stream() {
#if defined(__AVX512F__)
  _mm_sfence();
#endif
}

}  // namespace crest::CREST_ISA
