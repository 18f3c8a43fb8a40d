#pragma once
// max_pool2d: y[i, j] = the largest x[i stride - pad + r dilation, ...] that lies inside, over the kernel's taps r
#include <cstdint>

#include "isa.h"

namespace crest {

struct MaxPool2d {
  const float* x;  // (planes, h, w)
  float* y;        // (planes, out_h, out_w)
  int64_t planes, h, w, kh, kw, out_h, out_w;
  int64_t stride_h, stride_w, top, left, dilation_h, dilation_w;
  // Of x, on the CPU: planes of an image; numbers from a row, plane or image to the next. There are no gaps by default.
  int64_t channels = planes, x_row = w, x_plane = h * w, x_image = channels * x_plane;

  // Rows of y whose windows lie next to each other along one line: several where a row ends with its last window.
  __attribute__((always_inline)) int64_t rows_together() const {
    const bool tiled = left == 0 && dilation_w == 1 && kw == stride_w && out_w * kw == w;
    return tiled && w < 512 ? 512 / w : 1;
  }

  // Numbers that a kernel needs room for: a line of padded rows, and two registers of 64 bytes beyond.
  __attribute__((always_inline)) int64_t line_numbers() const {
    if (rows_together() > 1) return rows_together() * w + 32;
    const int64_t reach = (out_w - 1) * stride_w + (kw - 1) * dilation_w + 1;
    return (reach > left + w ? reach : left + w) + 32;
  }
};

// Planes [begin, end). `line` holds line_numbers().
CREST_DECLARE_KERNEL(max_pool2d, const MaxPool2d&, float* line, int64_t begin, int64_t end)

namespace cuda {
void max_pool2d(const MaxPool2d&, void* stream);
}

}  // namespace crest
