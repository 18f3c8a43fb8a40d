#pragma once
// Sums of squares over the groups of a weight that is soft-thresholded by l1 first (by 0: as it is), and what becomes
// of them.
#include "../groups.h"
#include "dtype.cuh"
#include "launch.cuh"

namespace crest::cuda {

// sign(x) max(|x| - l1, 0); a NaN stays one.
template <class A>
__device__ A soft_threshold(A x, A l1) {
  const A upper = x > l1 ? l1 : x;
  return x - (upper < -l1 ? -l1 : upper);
}

template <class A>
__device__ A sum_of_warp(A sum) {
  for (int half = warp / 2; half; half /= 2) sum += __shfl_xor_sync(~0u, sum, half);
  return sum;
}

// Groups that are runs of memory: `team` warps sum one of them.
template <class T, int threads, int team>
__global__ void __launch_bounds__(threads, 1024 / threads)
    group_runs_kernel(const T* weight, Acc<T>* sums, const int64_t count, const int64_t inner, const Acc<T> l1) {
  using A = Acc<T>;
  CREST_SHARED(A, parts, [threads / warp]);
  constexpr int teams = threads / warp / team;
  const int own = static_cast<int>(threadIdx.x) / warp, lane = static_cast<int>(threadIdx.x) % (team * warp);
  const int64_t g = int64_t{blockIdx.x} * teams + own / team;
  A sum = 0;
  if (g < count)
    for (int64_t i = lane; i < inner; i += team * warp) {
      const A x = soft_threshold(widen(weight[g * inner + i]), l1);
      sum += x * x;
    }
  sum = sum_of_warp(sum);
  if (threadIdx.x % warp == 0) parts[own] = sum;
  __syncthreads();
  if (lane != 0 || g >= count) return;
  for (int i = 1; i < team; ++i) sum += parts[own + i];
  sums[g] = sum;
}

// The others: the columns of a block of rows. A warp takes neighbours of one row.
template <class T, int threads>
__global__ void __launch_bounds__(threads, 1024 / threads)
    group_columns_kernel(const T* weight, Acc<T>* sums, const int64_t outer, const int64_t width, const int64_t rows,
                         const Acc<T> l1) {
  using A = Acc<T>;
  constexpr int warps = threads / warp;
  CREST_SHARED(A, parts, [warps][warp]);
  const int own = static_cast<int>(threadIdx.x) / warp, lane = static_cast<int>(threadIdx.x) % warp;
  const int64_t tiles = (width + warp - 1) / warp, block = blockIdx.x / tiles;
  const int64_t column = blockIdx.x % tiles * warp + lane, first = block * rows;
  const int64_t last = first + rows < outer ? first + rows : outer;
  A sum = 0;
  if (column < width)
    for (int64_t row = first + own; row < last; row += warps) {
      const A x = soft_threshold(widen(weight[row * width + column]), l1);
      sum += x * x;
    }
  parts[own][lane] = sum;
  __syncthreads();
  if (own != 0 || column >= width) return;
  for (int i = 1; i < warps; ++i) sum += parts[i][lane];
  sums[block * width + column] = sum;
}

// A warp a group adds up what either left, `each` sums a group in every block, and does finish(g, sum, lane).
template <class A, int threads, class Finish>
__global__ void __launch_bounds__(threads, 1024 / threads)
    group_finish_kernel(const A* sums, const int64_t count, const int64_t each, const int64_t blocks,
                        const Finish finish) {
  const int lane = static_cast<int>(threadIdx.x) % warp;
  const int64_t g = int64_t{blockIdx.x} * (threads / warp) + threadIdx.x / warp;
  if (g >= count) return;  // the whole warp
  A sum = 0;
  for (int64_t block = 0; block < blocks; ++block)
    for (int64_t i = lane; i < each; i += warp) sum += sums[(block * count + g) * each + i];
  finish(g, sum_of_warp(sum), lane);
}

// All of the above: a pass over the weight, and a short one over the sums.
template <class T, int threads, class Finish>
void group_sums(const char* op, const void* weight, void* sums, const Groups& groups, double l1, void* stream,
                const Finish& finish) {
  using A = Acc<T>;
  constexpr int warps = threads / warp;
  const T* w = static_cast<const T*>(weight);
  A* s = static_cast<A*>(sums);
  if (groups.outer != 1) {
    const int64_t blocks = ceil_div(groups.width(), warp) * groups.blocks();
    launch(op, group_columns_kernel<T, threads>, blocks, threads, stream, w, s, groups.outer, groups.width(),
           groups.rows(), A(l1));
  } else if (groups.inner > 4 * threads) {
    launch(op, group_runs_kernel<T, threads, warps>, groups.count, threads, stream, w, s, groups.count, groups.inner,
           A(l1));
  } else {
    launch(op, group_runs_kernel<T, threads, 1>, ceil_div(groups.count, warps), threads, stream, w, s, groups.count,
           groups.inner, A(l1));
  }
  launch(op, group_finish_kernel<A, threads, Finish>, ceil_div(groups.count, warps), threads, stream,
         static_cast<const A*>(s), groups.count, groups.cells_of_group(), groups.blocks(), finish);
}

}  // namespace crest::cuda
