#pragma once
// A block computes `pixels` x `outputs` of y. Of `depth` channels at a time it puts what the depthwise convolution
// gives into shared memory, beside their lines of the pointwise weight; a thread sums 4 x 4 of the products.
#include "../separable_conv2d.h"
#include "activation.cuh"
#include "dtype.cuh"
#include "launch.cuh"

namespace crest::cuda {

// One number of the depthwise convolution: pixel `at` of all images, channel c.
__device__ inline float depthwise_pixel(const DepthwiseConv2d& a, int64_t at, int64_t c) {
  const int64_t j = at % a.out_w, i = at / a.out_w % a.out_h, n = at / a.out_w / a.out_h;
  const float* x = static_cast<const float*>(a.x) + n * a.h * a.w * a.in_c + c;
  const float* weight = static_cast<const float*>(a.weight) + c;
  float sum = a.bias ? static_cast<const float*>(a.bias)[c] : 0;
  for (int64_t r = 0; r < a.kh; ++r) {
    const int64_t row = i * a.stride_h - a.top + r * a.dilation_h;
    if (row < 0 || row >= a.h) continue;
    for (int64_t s = 0; s < a.kw; ++s) {
      const int64_t column = j * a.stride_w - a.left + s * a.dilation_w;
      if (column >= 0 && column < a.w) sum += weight[(r * a.kw + s) * a.in_c] * x[(row * a.w + column) * a.in_c];
    }
  }
  return activate(sum, a.activation);
}

template <int pixels, int outputs, int depth>
__global__ void __launch_bounds__(pixels* outputs / 16, 16384 / (pixels * outputs))
    separable_conv2d_kernel(const SeparableConv2d a) {
  constexpr int threads = pixels * outputs / 16;
  CREST_SHARED(float, tile, [depth][pixels + 4]);  // 4: channels of a pixel, which threads write, in other banks
  CREST_SHARED(float, weight, [depth][outputs]);
  const int64_t c = a.depthwise.in_c, all = a.depthwise.n * a.depthwise.out_h * a.depthwise.out_w;
  const int64_t columns = (a.m + outputs - 1) / outputs;
  const int64_t first = blockIdx.x / columns * pixels, output = blockIdx.x % columns * outputs;
  const int thread = static_cast<int>(threadIdx.x);
  const int row = thread / (outputs / 4) * 4, column = thread % (outputs / 4) * 4;

  float sums[16] = {};
  for (int64_t channel = 0; channel < c; channel += depth) {
#pragma unroll 1  // registers are for the sums
    for (int i = thread; i < depth * pixels; i += threads) {
      const int64_t at = first + i / depth, k = channel + i % depth;
      tile[i % depth][i / depth] = at < all && k < c ? depthwise_pixel(a.depthwise, at, k) : 0;
    }
#pragma unroll 1
    for (int i = thread; i < depth * outputs; i += threads) {
      const int64_t k = channel + i / outputs, o = output + i % outputs;
      const int64_t line = o / panel_outputs * c + k;
      weight[i / outputs][i % outputs] = k < c && o < a.m ? a.weight[line * panel_outputs + o % panel_outputs] : 0;
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < depth; ++k) {
      const auto u = load<4>(&tile[k][row]), v = load<4>(&weight[k][column]);
      for (int i = 0; i < 16; ++i) sums[i] += u.v[i / 4] * v.v[i % 4];
    }
    __syncthreads();
  }

  for (int i = 0; i < 16; ++i) {
    const int64_t at = first + row + i / 4, o = output + column + i % 4;
    if (at < all && o < a.m) a.y[at * a.m + o] = activate(sums[i] + (a.bias ? a.bias[o] : 0), a.activation);
  }
}

template <int pixels = 64, int outputs = 64, int depth = 16>
void separable_conv2d(const SeparableConv2d& a, void* stream) {
  const int64_t all = a.depthwise.n * a.depthwise.out_h * a.depthwise.out_w;
  launch("separable_conv2d", separable_conv2d_kernel<pixels, outputs, depth>,
         ceil_div(all, pixels) * ceil_div(a.m, outputs), pixels * outputs / 16, stream, a);
}

}  // namespace crest::cuda
