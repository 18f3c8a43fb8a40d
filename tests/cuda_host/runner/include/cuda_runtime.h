#pragma once
// Shadows the toolkit's header: its types, and our meaning for what a kernel does with the device.
#include_next <cuda_runtime.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <tuple>
#include <utility>

#include "../grid.h"

#undef __global__
#undef __device__
#undef __host__
#undef __shared__
#undef __launch_bounds__
#define __global__
#define __device__
#define __host__
#define __shared__ static_assert(false, "shared memory is had by CREST_SHARED")
#define __launch_bounds__(...)

#define cudaLaunchKernelEx cuda_host::launch

using cuda_host::blockIdx;
using cuda_host::gridDim;
using cuda_host::threadIdx;

// One name a place in the source, and an instance of the template it stands in.
#define CREST_SHARED(T, name, extents) \
  static char name##_here;             \
  using name##_array = T extents;      \
  name##_array& name = *static_cast<name##_array*>(cuda_host::shared(&name##_here, sizeof(name##_array)))

namespace cuda_host {

template <class... Params, class... Args>
cudaError_t launch(const cudaLaunchConfig_t* config, void (*kernel)(Params...), Args&&... args) {
  const std::tuple<Params...> values(std::forward<Args>(args)...);
  run_grid(config->gridDim.x, config->blockDim.x, [&] { std::apply(kernel, values); });
  return cudaSuccess;
}

template <class To, class From>
To bits_of(From x) {
  To y{};
  std::memcpy(&y, &x, sizeof x < sizeof y ? sizeof x : sizeof y);
  return y;
}

constexpr unsigned whole_warp = ~0u;

// All lanes of the warp bring a value; from(lane) says whose each one takes.
template <class T>
T shuffle(unsigned mask, T x, unsigned from, Site site) {
  if (mask != whole_warp) fail("%s:%d: the host runner knows whole warps only", site.file, site.line);
  return bits_of<T>(exchange(bits_of<uint64_t>(x), site)[from]);
}

}  // namespace cuda_host

#define CUDA_HOST_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(CUDA_HOST_SITE) { cuda_host::barrier({file, line}); }

template <class T>
T __shfl_sync(unsigned mask, T x, int from, CUDA_HOST_SITE) {
  return cuda_host::shuffle(mask, x, from, {file, line});
}

template <class T>
T __shfl_xor_sync(unsigned mask, T x, int by, CUDA_HOST_SITE) {
  return cuda_host::shuffle(mask, x, cuda_host::lane() ^ by, {file, line});
}

inline unsigned __ballot_sync(unsigned mask, int vote, CUDA_HOST_SITE) {
  if (mask != cuda_host::whole_warp) cuda_host::fail("%s:%d: the host runner knows whole warps only", file, line);
  const uint64_t* votes = cuda_host::exchange(vote != 0, {file, line});
  unsigned bits = 0;
  for (int i = 0; i < 32; ++i) bits |= static_cast<unsigned>(votes[i]) << i;
  return bits;
}

using std::fabs;
using std::frexp;
using std::ldexp;
using std::sqrt;

inline int __popc(unsigned x) { return __builtin_popcount(x); }

inline int atomicAdd(int* p, int x) { return __atomic_fetch_add(p, x, __ATOMIC_RELAXED); }
