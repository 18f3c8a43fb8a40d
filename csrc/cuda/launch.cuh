#pragma once
// Launches and shared memory: the two things that the tests' host runner (tests/cuda_host) does its own way.
#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

// An array in shared memory: CREST_SHARED(float, tile, [2][32]). The only way kernels get any.
#ifndef CREST_SHARED
#define CREST_SHARED(T, name, extents) __shared__ __align__(16) T name extents
#endif

namespace crest::cuda {

constexpr int warp = 32;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Runs a kernel on a row of blocks, the one grid dimension that may exceed 65535. The only launch there is.
template <class... Params, class... Args>
void launch(const char* op, void (*kernel)(Params...), int64_t blocks, int threads, void* stream, Args&&... args) {
  if (blocks < 1 || blocks > INT32_MAX)
    throw std::runtime_error(std::string(op) + ": CUDA grid must have 1 to 2147483647 blocks, got " +
                             std::to_string(blocks));
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.stream = static_cast<cudaStream_t>(stream);
  if (const cudaError_t error = cudaLaunchKernelEx(&config, kernel, std::forward<Args>(args)...))
    throw std::runtime_error(std::string(op) + ": CUDA launch failed: " + cudaGetErrorString(error));
}

}  // namespace crest::cuda
