#pragma once
// A thread computes one number of y. Neighbours in memory are neighbouring threads: outputs of one pixel, which all
// read the same of x, or pixels of one output, which read the same of weight.
#include "../stem_conv2d.h"
#include "activation.cuh"
#include "launch.cuh"

namespace crest::cuda {

template <int threads>
__global__ void __launch_bounds__(threads) stem_conv2d_kernel(const StemConv2d a) {
  const int64_t at = int64_t{blockIdx.x} * threads + threadIdx.x;
  if (at >= a.n * a.out_h * a.out_w * a.m) return;
  const int64_t plane = a.out_h * a.out_w;
  const int64_t o = a.channels_last ? at % a.m : at / plane % a.m, n = at / (plane * a.m);
  const int64_t pixel = a.channels_last ? at / a.m % plane : at % plane, j = pixel % a.out_w, i = pixel / a.out_w;
  const float* weight = a.weight + o * a.c * a.kh * a.kw;
  const float* x = a.x + n * a.step_n;
  float sum = a.bias ? a.bias[o] : 0;
  for (int64_t c = 0; c < a.c; ++c, x += a.step_c, weight += a.kh * a.kw)
    for (int64_t r = 0; r < a.kh; ++r) {
      const int64_t row = i * a.stride_h - a.top + r * a.dilation_h;
      if (row < 0 || row >= a.h) continue;
      for (int64_t s = 0; s < a.kw; ++s) {
        const int64_t column = j * a.stride_w - a.left + s * a.dilation_w;
        if (column >= 0 && column < a.w) sum += weight[r * a.kw + s] * x[row * a.step_h + column * a.step_w];
      }
    }
  a.y[at] = activate(sum, a.activation);
}

template <int threads = 256>
void stem_conv2d(const StemConv2d& a, void* stream) {
  launch("stem_conv2d", stem_conv2d_kernel<threads>, ceil_div(a.n * a.out_h * a.out_w * a.m, threads), threads, stream,
         a);
}

}  // namespace crest::cuda
