#pragma once
// Ops on n elements, one at a time or a pack at a time: the loop that apply_mask and the mask updates share.
#include <algorithm>

#include "dtype.cuh"
#include "launch.cuh"

namespace crest::cuda {

constexpr int elementwise_threads = 256;
constexpr int64_t elementwise_blocks = 1 << 14;  // several waves of any GPU; then each thread takes more packs

// Calls op.apply<width>(i) for the elements from i on, and op.apply<1>(i) for what is left at the end.
template <class Op, int threads, int width>
__global__ void __launch_bounds__(threads) elementwise_kernel(const Op op, const int64_t n) {
  const int64_t first = int64_t{blockIdx.x} * threads + threadIdx.x, step = int64_t{gridDim.x} * threads;
  for (int64_t i = first; i < n / width; i += step) op.template apply<width>(i * width);
  for (int64_t i = n / width * width + first; i < n; i += step) op.template apply<1>(i);
}

// Takes packs of 16 bytes of T if `op` says that its pointers are aligned to them.
template <class T, int threads, class Op>
void elementwise(const char* name, const Op& op, int64_t n, void* stream, int64_t max_blocks) {
  constexpr int width = 16 / sizeof(T);
  const auto blocks = [&](int64_t packs) { return std::clamp<int64_t>(ceil_div(packs, threads), 1, max_blocks); };
  if (op.template packs<width>())
    launch(name, elementwise_kernel<Op, threads, width>, blocks(n / width), threads, stream, op, n);
  else
    launch(name, elementwise_kernel<Op, threads, 1>, blocks(n), threads, stream, op, n);
}

}  // namespace crest::cuda
