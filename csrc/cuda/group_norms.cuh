#pragma once
#include "../group_norms.h"
#include "group_sums.cuh"

namespace crest::cuda {

template <class T>
struct WriteNorm {
  T* norms;

  __device__ void operator()(int64_t g, Acc<T> sum, int lane) const {
    if (lane == 0) narrow(sqrt(sum), norms[g]);
  }
};

template <class T, int threads = 256>
void group_norms(const GroupNorms& a, void* stream) {
  group_sums<T, threads>("group_norms", a.weight, a.sums, a.groups, 0, stream, WriteNorm<T>{static_cast<T*>(a.norms)});
}

}  // namespace crest::cuda
