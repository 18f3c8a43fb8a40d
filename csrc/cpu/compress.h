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
#elif defined(__AVX2__)
  if (count == 64) {
    const auto half = [](const bool* p) {
      const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
      return static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_slli_epi16(bytes, 7)));
    };
    return uint64_t{half(mask + 32)} << 32 | half(mask);
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

// Row i: the positions of the bits of i, lowest first, one a byte.
struct BitTable {
  uint64_t at[256] = {};
  constexpr BitTable() {
    for (int i = 0; i < 256; ++i)
      for (int bit = 0, n = 0; bit < 8; ++bit)
        if (i >> bit & 1) at[i] |= static_cast<uint64_t>(bit) << 8 * n++;
  }
};
constexpr BitTable bit_table;

// Writes the kept ones of n (<= 256) weights to values, widened, and their positions to index; returns how many. Both
// outputs need room for one register more. Meanwhile it asks for the row below, k further, which the caller compresses
// next.
template <class T, class A>
inline int compress(const T* weight, const bool* mask, int n, int64_t k, A* values, uint8_t* index) {
  int64_t count = 0;
  int i = 0;
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
      _mm_storeu_si128(reinterpret_cast<__m128i*>(index + count),
                       _mm512_cvtepi32_epi8(_mm512_maskz_compress_epi32(kept, lane)));
      count += __builtin_popcount(kept);
      lane = _mm512_add_epi32(lane, _mm512_set1_epi32(16));
    }
  }
#endif
  for (; i < n; i += 64) {
    for (int line = 0; line < static_cast<int>(sizeof(T)); ++line)
      __builtin_prefetch(reinterpret_cast<const char*>(weight + k + i) + 64 * line);
    __builtin_prefetch(mask + k + i);
    uint64_t left = bits(mask + i, min(n - i, 64));
#if defined(__AVX2__)
    // Eight at a time, whatever is kept of them: a loop over the kept ones ends where no branch predictor foresees it.
    if constexpr (sizeof(A) == 4)
      if (i + 64 <= n) {
#pragma GCC unroll 8
        for (int j = 0; j < 64; j += 8) {
          const uint64_t byte = left >> j & 255, at = bit_table.at[byte];
          const __m256i order = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<int64_t>(at)));
          const __m256 w = (__m256)Vec<A, 32>::load(weight + i + j).v;
          _mm256_storeu_ps(values + count, _mm256_permutevar8x32_ps(w, order));
          const uint64_t columns = at + static_cast<uint64_t>(i + j) * 0x0101010101010101;
          std::memcpy(index + count, &columns, sizeof columns);
          count += __builtin_popcountll(byte);
        }
        continue;
      }
#endif
    for (; left; left &= left - 1) {
      const int j = i + __builtin_ctzll(left);
      values[count] = widen(weight[j]);
      index[count++] = static_cast<uint8_t>(j);
    }
  }
  return static_cast<int>(count);
}

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
    typedef uint8_t Bytes __attribute__((vector_size(8)));
    Bytes bytes;
    std::memcpy(&bytes, &bit_table.at[set >> i & 255], sizeof bytes);
    const Words at = __builtin_convertvector(bytes, Words) + base;
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
