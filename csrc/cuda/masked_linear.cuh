#pragma once
#include <type_traits>

#include "../masked_linear.h"
#include "masked_product.cuh"

namespace crest::cuda {

// Few rows of x: limited by reading weight. A warp computes one column of y from one row of weight, and does not touch
// the packs of weight that the mask drops whole.
template <class T, int threads, int rows, int width>
__global__ void __launch_bounds__(threads, 1024 / threads)
    masked_linear_kernel(const T* x, const T* weight, const bool* mask, const T* bias, T* y, const int64_t n,
                         const int64_t m, const int64_t k) {
  const int lane = threadIdx.x % warp;
  const int64_t j = int64_t{blockIdx.x} * (threads / warp) + threadIdx.x / warp;
  if (j >= m) return;  // the whole warp
  Acc<T> sums[rows] = {};

#pragma unroll 4
  for (int64_t l = lane * width; l < k; l += warp * width) {
    const auto keep = load<width>(mask + j * k + l);
    bool any = false;
    for (int q = 0; q < width; ++q) any |= keep.v[q];
    if (!any) continue;
    const auto w = load<width>(weight + j * k + l);
    for (int i = 0; i < rows; ++i) {
      if (i >= n) break;
      const auto v = load<width>(x + i * k + l);
      for (int q = 0; q < width; ++q) sums[i] += widen(v.v[q]) * (keep.v[q] ? widen(w.v[q]) : Acc<T>{0});
    }
  }

  const Acc<T> shift = bias ? widen(bias[j]) : Acc<T>{0};
  for (int i = 0; i < rows; ++i) {
    if (i >= n) break;
    for (int half = warp / 2; half; half /= 2) sums[i] += __shfl_xor_sync(~0u, sums[i], half);
    if (lane == 0) narrow(sums[i] + shift, y[i * m + j]);
  }
}

template <class T, int threads, int rows>
void masked_linear_few(const MaskedLinear& a, void* stream) {
  const T *x = static_cast<const T*>(a.x), *weight = static_cast<const T*>(a.weight);
  const auto run = [&](auto width) {
    launch("masked_linear", masked_linear_kernel<T, threads, rows, width.value>, ceil_div(a.m, threads / warp), threads,
           stream, x, weight, a.mask, static_cast<const T*>(a.bias), static_cast<T*>(a.y), a.n, a.m, a.k);
  };
  constexpr int width = 16 / sizeof(T);
  if (a.k % width == 0 && aligned<width>(x) && aligned<width>(weight) && aligned<width>(a.mask))
    run(std::integral_constant<int, width>{});
  else
    run(std::integral_constant<int, 1>{});
}

template <class T, int threads = 256, int rows = 32, int cols = 32, int groups = 8>
void masked_linear(const MaskedLinear& a, void* stream) {
  if (a.n == 1)
    masked_linear_few<T, threads, 1>(a, stream);
  else if (a.n <= 8)
    masked_linear_few<T, threads, 8>(a, stream);
  else
    masked_product<T, true, rows, cols, groups>("masked_linear", a.x, a.weight, a.mask, a.bias, a.y, a.n, a.m, a.k,
                                                stream);
}

}  // namespace crest::cuda
