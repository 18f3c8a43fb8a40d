#pragma once
#include "../masked_linear_grad_weight.h"
#include "dtype.cuh"
#include "launch.cuh"

namespace crest::cuda {

// A block takes rows x cols of the mask, lists the positions it keeps, and shares them out evenly among its threads,
// which sum over slices of grad and x in shared memory. A tile that keeps nothing reads neither.
template <class T, int rows, int cols, int threads>
__global__ void __launch_bounds__(threads)
    masked_linear_grad_weight_kernel(const T* grad, const T* x, const bool* mask, T* grad_weight, const int64_t n,
                                     const int64_t m, const int64_t k) {
  using A = Acc<T>;
  constexpr int depth = 32, each = rows * cols / threads;
  static_assert(each * threads == rows * cols && threads % warp == 0 && rows * cols <= 1 << 16);
  CREST_SHARED(A, slice_grad, [depth][rows]);
  CREST_SHARED(A, slice_x, [depth][cols]);
  CREST_SHARED(T, result, [rows * cols]);
  CREST_SHARED(uint16_t, list, [rows * cols]);
  CREST_SHARED(int, listed, [1]);

  const int thread = threadIdx.x, lane = thread % warp;
  const int64_t tiles = (k + cols - 1) / cols;
  const int64_t first_row = blockIdx.x / tiles * rows, first_col = blockIdx.x % tiles * cols;
  const auto inside = [&](int p) { return first_row + p / cols < m && first_col + p % cols < k; };
  const auto at = [&](int p) { return (first_row + p / cols) * k + first_col + p % cols; };

  if (thread == 0) listed[0] = 0;
  __syncthreads();
  for (int e = 0; e < each; ++e) {
    const int p = e * threads + thread;
    const bool keep = inside(p) && mask[at(p)];
    narrow(A{0}, result[p]);
    const unsigned kept = __ballot_sync(~0u, keep);
    int to = lane == 0 ? atomicAdd(&listed[0], __popc(kept)) : 0;
    to = __shfl_sync(~0u, to, 0) + __popc(kept & ((1u << lane) - 1));
    if (keep) list[to] = static_cast<uint16_t>(p);
  }
  __syncthreads();
  const int count = listed[0];

  A sums[each] = {};
  for (int64_t line = 0; line < n && count > 0; line += depth) {
    const int lines = n - line < depth ? static_cast<int>(n - line) : depth;
    for (int i = thread; i < lines * rows; i += threads) {
      const int64_t j = first_row + i % rows;
      if (j < m) slice_grad[i / rows][i % rows] = widen(grad[(line + i / rows) * m + j]);
    }
    for (int i = thread; i < lines * cols; i += threads) {
      const int64_t l = first_col + i % cols;
      if (l < k) slice_x[i / cols][i % cols] = widen(x[(line + i / cols) * k + l]);
    }
    __syncthreads();
#pragma unroll
    for (int e = 0; e < each; ++e) {
      if (e * threads + thread >= count) break;
      const int p = list[e * threads + thread], j = p / cols, l = p % cols;
#pragma unroll 8
      for (int i = 0; i < lines; ++i) sums[e] += slice_grad[i][j] * slice_x[i][l];
    }
    __syncthreads();
  }

  // By way of shared memory, so that whole rows are written.
#pragma unroll
  for (int e = 0; e < each; ++e)
    if (e * threads + thread < count) narrow(sums[e], result[list[e * threads + thread]]);
  __syncthreads();
  for (int e = 0; e < each; ++e) {
    const int p = e * threads + thread;
    if (inside(p)) grad_weight[at(p)] = result[p];
  }
}

template <class T, int rows = 32, int cols = 64, int threads = 256>
void masked_linear_grad_weight(const MaskedLinearGradWeight& a, void* stream) {
  launch("masked_linear_grad_weight", masked_linear_grad_weight_kernel<T, rows, cols, threads>,
         ceil_div(a.m, rows) * ceil_div(a.k, cols), threads, stream, static_cast<const T*>(a.grad),
         static_cast<const T*>(a.x), a.mask, static_cast<T*>(a.grad_weight), a.n, a.m, a.k);
}

}  // namespace crest::cuda
