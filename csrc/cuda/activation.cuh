#pragma once
#include <cuda_runtime.h>

#include "../activation.h"

namespace crest::cuda {

template <class Number>
__device__ inline Number activate(Number x, Activation activation) {
  if (activation != Activation::none && x < 0) x = 0;  // a NaN stays
  return activation == Activation::relu6 && x > 6 ? 6 : x;
}

}  // namespace crest::cuda
