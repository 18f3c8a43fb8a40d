#pragma once
// The element types on the device, and packs of neighbours that are read and written in one access.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "../dtype.h"

namespace crest::cuda {

// ---- one number ----

__host__ __device__ inline float widen(float x) { return x; }
__host__ __device__ inline double widen(double x) { return x; }
__host__ __device__ inline float widen(__half x) { return __half2float(x); }
__host__ __device__ inline float widen(__nv_bfloat16 x) { return __bfloat162float(x); }

__host__ __device__ inline void narrow(float x, float& y) { y = x; }
__host__ __device__ inline void narrow(double x, double& y) { y = x; }
__host__ __device__ inline void narrow(float x, __half& y) { y = __float2half_rn(x); }
__host__ __device__ inline void narrow(float x, __nv_bfloat16& y) { y = __float2bfloat16_rn(x); }

// The type sums are kept in.
template <class T>
using Acc = decltype(widen(T{}));

// ---- neighbours ----

// One access of the hardware moves at most 16 bytes.
template <class T, int width>
struct alignas(width * sizeof(T) < 16 ? width * sizeof(T) : 16) Pack {
  T v[width];
};

// p must be aligned as Pack<T, width> is.
template <int width, class T>
__device__ Pack<T, width> load(const T* p) {
  return *reinterpret_cast<const Pack<T, width>*>(p);
}

template <class T, int width>
__device__ void store(T* p, const Pack<T, width>& x) {
  *reinterpret_cast<Pack<T, width>*>(p) = x;
}

// Whether packs of `width` may be read from p on.
template <int width, class T>
bool aligned(const T* p) {
  return reinterpret_cast<uintptr_t>(p) % alignof(Pack<T, width>) == 0;
}

// ---- calling a template with the type of an op's arguments ----

template <class T>
struct Of {
  using type = T;
};

// f(Of<float>{}), f(Of<double>{}), f(Of<__nv_bfloat16>{}) or f(Of<__half>{}).
template <class F>
void dispatch(Dtype dtype, const F& f) {
  switch (dtype) {
    case Dtype::float32: return f(Of<float>{});
    case Dtype::float64: return f(Of<double>{});
    case Dtype::bfloat16: return f(Of<__nv_bfloat16>{});
    case Dtype::float16: return f(Of<__half>{});
  }
}

}  // namespace crest::cuda
