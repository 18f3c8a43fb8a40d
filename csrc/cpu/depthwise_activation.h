#pragma once
#include "../depthwise_conv2d.h"
#include "vec.h"

namespace crest::CREST_ISA {

template <class V>
inline V activate(V x, Activation activation) {
  if (activation == Activation::none) return x;
  x.v = x.v < 0 ? V::zero().v : x.v;  // a NaN stays
  if (activation == Activation::relu6) x.v = x.v > 6 ? V::zero().v + 6 : x.v;
  return x;
}

}  // namespace crest::CREST_ISA
