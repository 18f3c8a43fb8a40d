#pragma once
// stem_conv2d: y = act(x * weight + bias), the convolution that a network begins with. It has few inputs and more
// outputs, which are computed side by side, pixel by pixel, a row of y at a time.
#include "depthwise_conv2d.h"

namespace crest {

constexpr int64_t stem_outputs = 32;  // of a panel

// The packed weight is (ceil(m / 32), c kh kw, 32): the outputs of a tap side by side; the last panel is filled up.
struct StemConv2d {
  const float* x;       // (n, c, h, w) at any strides
  const float* weight;  // (m, c, kh, kw)
  const float* bias;    // (m,), or nullptr
  float* y;             // (n, out_h, out_w, m) where channels come last, else (n, m, out_h, out_w)
  int64_t n, c, m, h, w, kh, kw, out_h, out_w;
  int64_t step_n, step_c, step_h, step_w;  // strides of x
  int64_t stride_h, stride_w, top, left, dilation_h, dilation_w;
  bool channels_last;
  Activation activation;

  // Inlined always: csrc/cpu may define nothing outside its namespaces.
#define CREST_SIZE __attribute__((always_inline)) int64_t
  CREST_SIZE taps() const { return c * kh * kw; }
  CREST_SIZE panels() const { return (m + stem_outputs - 1) / stem_outputs; }
  // What a row of y is made from: (c, kh, pitch), the rows of x that the kernel meets, with the padding.
  CREST_SIZE pitch() const { return (out_w - 1) * stride_w + (kw - 1) * dilation_w + 1; }
  CREST_SIZE window_numbers() const { return c * kh * pitch(); }
  // And a panel's outputs of a row of y, which planes are made of: (out_w, 32), and room for a register more of pixels.
  CREST_SIZE row_numbers() const { return channels_last ? 0 : (out_w + 16) * stem_outputs; }
#undef CREST_SIZE
};

// Panels [begin, end) of the packed weight.
CREST_DECLARE_KERNEL(stem_conv2d_pack, const StemConv2d&, float* packed, int64_t begin, int64_t end)
// Rows [begin, end) of the n out_h of y. `window` has room for window_numbers() and row_numbers().
CREST_DECLARE_KERNEL(stem_conv2d, const StemConv2d&, const float* packed, float* window, int64_t begin, int64_t end)

namespace cuda {
void stem_conv2d(const StemConv2d&, void* stream);
}

}  // namespace crest
