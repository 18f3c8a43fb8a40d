#pragma once
#include "../depthwise_conv2d_grad_weight.h"
#include "dtype.cuh"
#include "launch.cuh"

namespace crest::cuda {

// A block sums one tap of one channel over all images, always in the same order.
template <class T, int threads>
__global__ void __launch_bounds__(threads) depthwise_conv2d_grad_weight_kernel(const DepthwiseConv2dGradWeight a) {
  using A = Acc<T>;
  CREST_SHARED(A, sums, [threads]);
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t tap = blockIdx.x, s = tap % a.kw, r = tap / a.kw % a.kh, o = tap / a.kw / a.kh, m = a.c * a.multiplier;
  A sum = 0;
  for (int64_t at = thread; at < a.n * a.out_h * a.out_w; at += threads) {
    const int64_t j = at % a.out_w, i = at / a.out_w % a.out_h, n = at / a.out_w / a.out_h;
    const int64_t row = i * a.stride_h - a.top + r * a.dilation_h, column = j * a.stride_w - a.left + s * a.dilation_w;
    if (row < 0 || row >= a.h || column < 0 || column >= a.w) continue;
    const int64_t grad_at = a.channels_last ? at * m + o : ((n * m + o) * a.out_h + i) * a.out_w + j;
    const int64_t c = o / a.multiplier;
    const int64_t x_at =
        a.channels_last ? ((n * a.h + row) * a.w + column) * a.c + c : ((n * a.c + c) * a.h + row) * a.w + column;
    sum += widen(static_cast<const T*>(a.grad)[grad_at]) * widen(static_cast<const T*>(a.x)[x_at]);
  }
  sums[thread] = sum;
  for (int half = threads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (thread < half) sums[thread] += sums[thread + half];
  }
  if (thread == 0) narrow(sums[0], static_cast<T*>(a.grad_weight)[tap]);
}

template <class T, int threads = 256>
void depthwise_conv2d_grad_weight(const DepthwiseConv2dGradWeight& a, void* stream) {
  static_assert((threads & (threads - 1)) == 0);
  launch("depthwise_conv2d_grad_weight", depthwise_conv2d_grad_weight_kernel<T, threads>,
         a.c * a.multiplier * a.kh * a.kw, threads, stream, a);
}

}  // namespace crest::cuda
