#pragma once
// Every other number of a row, as a stride of 2 needs them. AVX2 takes them within the halves of its registers, in an
// order of its own: to put each register in order would take a second instruction, so results are, once for all taps.
#include <utility>  // for integer_sequence, a type

#include "vec.h"

namespace crest::CREST_ISA {

#if defined(__AVX2__) && !defined(__AVX512F__)
constexpr int place_of(int lane) { return lane % 2 + lane / 4 * 2 + lane / 2 % 2 * 4; }

// From the order of `every_other` to that of a row, and the other way.
inline Vec<float> reorder(Vec<float> v) {
  return {(Vec<float>::Register)_mm256_permute4x64_pd((__m256d)v.v, 0b11011000)};
}
#else
constexpr int place_of(int lane) { return lane; }
inline Vec<float> reorder(Vec<float> v) { return v; }
#endif

template <int from, int... lane>
inline Vec<float> every_other(Vec<float> a, Vec<float> b, std::integer_sequence<int, lane...>) {
  return {__builtin_shufflevector(a.v, b.v, (2 * place_of(lane) + from)...)};
}

// Numbers from, from + 2, ... of two registers side by side; `reorder` puts their lanes in order.
template <int from>
inline Vec<float> every_other(Vec<float> a, Vec<float> b) {
  return every_other<from>(a, b, std::make_integer_sequence<int, Vec<float>::width>{});
}

}  // namespace crest::CREST_ISA
