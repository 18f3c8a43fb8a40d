#pragma once
// A block of threads computes the rows of one block of weight for a few rows of x. Its warps share out the slices of
// each cell: a lane sums every other step of one row. No row is twice in a cell, so sums meet only at a cell's end.
#include "../sparse_linear.h"
#include "activation.cuh"
#include "dtype.cuh"
#include "launch.cuh"

namespace crest::cuda {

template <class T, int threads, int count>
__global__ void __launch_bounds__(threads, 1024 / threads) sparse_linear_kernel(const SparseLinear a) {
  CREST_SHARED(float, x, [tile_columns][count]);
  CREST_SHARED(float, sums, [most_block_rows][count]);
  const T* values = static_cast<const T*>(a.values);
  const int64_t block = blockIdx.x % a.blocks, first = blockIdx.x / a.blocks * count;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % slice_rows, half = thread / slice_rows % 2;
  const int height = static_cast<int>(a.block_rows);
  for (int i = thread; i < height * count; i += threads) sums[i / count][i % count] = 0;

  for (int64_t tile = 0; tile < a.tiles; ++tile) {
    __syncthreads();
    for (int i = thread; i < tile_columns * count; i += threads) {
      const int64_t row = first + i / tile_columns, column = tile * tile_columns + i % tile_columns;
      x[i % tile_columns][i / tile_columns] = row < a.n && column < a.k ? a.x[row * a.k + column] : 0;
    }
    __syncthreads();
    const int64_t cell = block * a.tiles + tile;
    for (int64_t slice = a.slices[cell] + thread / warp; slice < a.slices[cell + 1]; slice += threads / warp) {
      float sum[count] = {};
      for (int64_t step = a.steps[slice] + half; step < a.steps[slice + 1]; step += 2) {
        const float w = widen(values[step * slice_rows + lane]);
        const int column = a.columns[step * slice_rows + lane];
        for (int i = 0; i < count; ++i) sum[i] += w * x[column][i];
      }
      float* to = sums[a.rows[slice * slice_rows + lane]];
      for (int i = 0; i < count; ++i) {
        sum[i] += __shfl_xor_sync(~0u, sum[i], slice_rows);
        if (half == 0) to[i] += sum[i];
      }
    }
  }

  __syncthreads();
  for (int i = thread; i < height * count; i += threads) {
    const int64_t row = first + i / height, j = block * height + i % height;
    if (row >= a.n || j >= a.m) continue;
    const float y = sums[i % height][i / height] + (a.bias ? a.bias[j] : 0);
    a.y[row * a.m + j] = activate(y, a.activation);
  }
}

template <class T, int threads = 256, int count = 8>
void sparse_linear(const SparseLinear& a, void* stream) {
  if (a.n == 1 && count > 1) return sparse_linear<T, threads, 1>(a, stream);
  launch("sparse_linear", sparse_linear_kernel<T, threads, count>, a.blocks * ceil_div(a.n, count), threads, stream, a);
}

}  // namespace crest::cuda
