#pragma once
// A thread sums one output. A block has outputs of one filter that are neighbours, in one image or on into the next:
// its threads take each non-zero together, and read x side by side where the stride is 1.
#include "../sparse_conv2d.h"
#include "activation.cuh"
#include "dtype.cuh"
#include "launch.cuh"

namespace crest::cuda {

template <class T, int threads>
__global__ void __launch_bounds__(threads, 1024 / threads) sparse_conv2d_kernel(const SparseConv2d a) {
  const T* values = static_cast<const T*>(a.values);
  const int64_t filter = blockIdx.x % a.m, at = blockIdx.x / a.m * threads + threadIdx.x;
  if (at >= a.n * a.oh * a.ow) return;
  const int64_t image = at / (a.oh * a.ow), position = at % (a.oh * a.ow), per_group = a.c / a.groups;
  const int64_t row = position / a.ow * a.stride[0] - a.padding[0];
  const int64_t column = position % a.ow * a.stride[1] - a.padding[1];
  const float* x = a.x + (image * a.c + filter / (a.m / a.groups) * per_group) * a.h * a.w;
  const int64_t tiles = (per_group * a.kh * a.kw + tile_of_filter - 1) / tile_of_filter;

  float sum = a.bias ? a.bias[filter] : 0;
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int32_t* start = a.starts + tile * a.m + filter;
    for (int64_t j = start[0]; j < start[1]; ++j) {
      const int64_t k = tile * tile_of_filter + a.columns[j];
      const int64_t y = row + k / a.kw % a.kh * a.dilation[0], z = column + k % a.kw * a.dilation[1];
      const bool inside = y >= 0 && y < a.h && z >= 0 && z < a.w;
      sum += widen(values[j]) * (inside ? x[(k / (a.kh * a.kw) * a.h + y) * a.w + z] : 0.0f);
    }
  }
  const int64_t to = (image * a.m + filter) * a.oh * a.ow + position;
  if (a.addend) sum += a.addend[to];
  a.y[to] = activate(sum, a.activation);
}

template <class T, int threads = 256>
void sparse_conv2d(const SparseConv2d& a, void* stream) {
  launch("sparse_conv2d", sparse_conv2d_kernel<T, threads>, ceil_div(a.n * a.oh * a.ow, threads) * a.m, threads, stream,
         a);
}

}  // namespace crest::cuda
