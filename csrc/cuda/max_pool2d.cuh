#pragma once
#include "../max_pool2d.h"
#include "elementwise.cuh"

namespace crest::cuda {

struct MaxPool2dTo {
  MaxPool2d a;

  template <int width>
  bool packs() const {
    return false;  // a thread's window is its own
  }

  template <int>
  __device__ void apply(int64_t i) const {
    const int64_t row = i / a.out_w, plane = row / a.out_h;
    const int64_t top = (row - plane * a.out_h) * a.stride_h - a.top, left = (i - row * a.out_w) * a.stride_w - a.left;
    float most = -INFINITY;
    for (int64_t r = 0; r < a.kh; ++r) {
      const int64_t at = top + r * a.dilation_h;
      if (at < 0 || at >= a.h) continue;
      const float* x = a.x + (plane * a.h + at) * a.w;
      for (int64_t s = 0; s < a.kw; ++s) {
        const int64_t column = left + s * a.dilation_w;
        if (column < 0 || column >= a.w) continue;
        const float value = x[column];
        if (value > most || value != value) most = value;
      }
    }
    a.y[i] = most;
  }
};

template <int threads = elementwise_threads>
void max_pool2d(const MaxPool2d& a, void* stream, int64_t max_blocks = elementwise_blocks) {
  elementwise<float, threads>("max_pool2d", MaxPool2dTo{a}, a.planes * a.out_h * a.out_w, stream, max_blocks);
}

}  // namespace crest::cuda
