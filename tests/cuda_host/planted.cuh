#pragma once
// Kernels with one fault each, for the tests that prove that faults are found. y is (n,); blocks have n threads.
#include "../../csrc/cuda/launch.cuh"

namespace planted {

using crest::cuda::launch;

__global__ inline void global_out_of_bounds(float* y, int64_t n) { y[threadIdx.x + (threadIdx.x == n - 1)] = 1; }

__global__ inline void shared_out_of_bounds(float* y, int64_t) {
  CREST_SHARED(float, tile, [64]);
  tile[threadIdx.x + 1] = 1;
  y[threadIdx.x] = tile[threadIdx.x + 1];
}

__global__ inline void misaligned(float* y, int64_t) {
  struct alignas(16) Quad {
    float v[4];
  };
  reinterpret_cast<Quad*>(y + 1)->v[0] = 1;
}

__global__ inline void not_initialised(float* y, int64_t) {
  CREST_SHARED(float, tile, [64]);
  y[threadIdx.x] = tile[threadIdx.x];
}

__global__ inline void read_without_barrier(float* y, int64_t n) {
  CREST_SHARED(float, tile, [64]);
  tile[threadIdx.x] = 1;
  y[threadIdx.x] = tile[n - 1 - threadIdx.x];
}

__global__ inline void rewrite_without_barrier(float* y, int64_t n) {
  CREST_SHARED(float, tile, [64]);
  float sum = 0;
  for (int turn = 0; turn < 2; ++turn) {
    tile[threadIdx.x] = static_cast<float>(turn);
    __syncthreads();
    sum += tile[n - 1 - threadIdx.x];
  }
  y[threadIdx.x] = sum;
}

__global__ inline void count_without_atomic(float* y, int64_t) {
  CREST_SHARED(int, count, [1]);
  if (threadIdx.x == 0) count[0] = 0;
  __syncthreads();
  ++count[0];
  __syncthreads();
  y[threadIdx.x] = static_cast<float>(count[0]);
}

__global__ inline void blocks_collide(float* y, int64_t) { y[threadIdx.x] = static_cast<float>(blockIdx.x); }

__global__ inline void divergent_barrier(float* y, int64_t) {
  if (threadIdx.x % 2)
    __syncthreads();
  else
    __syncthreads();
  y[threadIdx.x] = 1;
}

__global__ inline void barrier_not_reached(float* y, int64_t n) {
  if (threadIdx.x >= n / 2) return;
  __syncthreads();
  y[threadIdx.x] = 1;
}

__global__ inline void lane_not_there(float* y, int64_t) {
  if (threadIdx.x == 5) return;
  y[threadIdx.x] = __shfl_xor_sync(~0u, 1.f, 1);
}

// What all of them should have been like: nothing to find.
__global__ inline void faultless(float* y, int64_t n) {
  CREST_SHARED(int, count, [1]);
  CREST_SHARED(float, tile, [64]);
  if (threadIdx.x == 0) count[0] = 0;
  tile[threadIdx.x] = 1;
  __syncthreads();
  atomicAdd(&count[0], 1);
  const float other = tile[n - 1 - threadIdx.x];
  __syncthreads();
  tile[threadIdx.x] = other;
  if (blockIdx.x == 0) y[threadIdx.x] = static_cast<float>(count[0]) + tile[threadIdx.x];
}

}  // namespace planted
