#pragma once
#include "../depthwise_conv2d.h"
#include "activation.cuh"
#include "dtype.cuh"
#include "launch.cuh"

namespace crest::cuda {

// A thread computes one number of y; neighbours in memory are neighbouring threads, so that they share what they read.
template <class T, int threads>
__global__ void __launch_bounds__(threads) depthwise_conv2d_kernel(const DepthwiseConv2d a) {
  using A = Acc<T>;
  const int64_t at = int64_t{blockIdx.x} * threads + threadIdx.x;
  if (at >= a.n * a.out_c * a.out_h * a.out_w) return;
  int64_t rest = at;
  const auto next = [&](int64_t size) {
    const int64_t i = rest % size;
    rest /= size;
    return i;
  };
  const int64_t last_channel = a.channels_last ? next(a.out_c) : 0;
  const int64_t j = next(a.out_w), i = next(a.out_h);
  const int64_t o = a.channels_last ? last_channel : next(a.out_c), n = rest;

  const int64_t fan_in = a.in_c > a.out_c ? a.in_c / a.out_c : 1, fan_out = a.out_c > a.in_c ? a.out_c / a.in_c : 1;
  const int64_t step_c = a.channels_last ? 1 : a.h * a.w, step_w = a.channels_last ? a.in_c : 1, step_h = a.w * step_w;
  const int64_t taps = a.kh * a.kw;
  const T* weight = static_cast<const T*>(a.weight) + o * fan_in * taps;
  const T* x = static_cast<const T*>(a.x) + n * a.in_c * a.h * a.w + o / fan_out * fan_in * step_c;
  A sum = a.bias ? widen(static_cast<const T*>(a.bias)[o]) : A{0};
  for (int64_t q = 0; q < fan_in; ++q, x += step_c, weight += taps)
    for (int64_t r = 0; r < a.kh; ++r) {
      const int64_t row = i * a.stride_h - a.top + r * a.dilation_h;
      if (row < 0 || row >= a.h * a.spread_h || row % a.spread_h != 0) continue;
      for (int64_t s = 0; s < a.kw; ++s) {
        const int64_t column = j * a.stride_w - a.left + s * a.dilation_w, t = r * a.kw + s;
        if (column < 0 || column >= a.w * a.spread_w || column % a.spread_w != 0) continue;
        sum += widen(weight[a.flip ? taps - 1 - t : t]) *
               widen(x[row / a.spread_h * step_h + column / a.spread_w * step_w]);
      }
    }
  narrow(activate(sum, a.activation), static_cast<T*>(a.y)[at]);
}

template <class T, int threads = 256>
void depthwise_conv2d(const DepthwiseConv2d& a, void* stream) {
  launch("depthwise_conv2d", depthwise_conv2d_kernel<T, threads>, ceil_div(a.n * a.out_c * a.out_h * a.out_w, threads),
         threads, stream, a);
}

}  // namespace crest::cuda
