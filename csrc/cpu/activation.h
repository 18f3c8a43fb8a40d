#pragma once
#include "../activation.h"
#include "vec.h"

namespace crest::CREST_ISA {

template <class V>
inline V activate(V x, Activation activation) {
  if (activation == Activation::none) return x;
  x.v = x.v < 0 ? V::zero().v : x.v;  // a NaN stays
  if (activation == Activation::relu6) x.v = x.v > 6 ? V::zero().v + 6 : x.v;
  return x;
}

inline float activate(float x, Activation activation) {
  if (activation != Activation::none && x < 0) return 0;  // a NaN stays
  return activation == Activation::relu6 && x > 6 ? 6 : x;
}

}  // namespace crest::CREST_ISA
