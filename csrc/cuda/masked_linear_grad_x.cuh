#pragma once
#include "../masked_linear_grad_x.h"
#include "masked_product.cuh"

namespace crest::cuda {

template <class T, int rows = 32, int cols = 32, int groups = 8>
void masked_linear_grad_x(const MaskedLinearGradX& a, void* stream) {
  masked_product<T, false, rows, cols, groups>("masked_linear_grad_x", a.grad, a.weight, a.mask, nullptr, a.grad_x, a.n,
                                               a.k, a.m, stream);
}

}  // namespace crest::cuda
