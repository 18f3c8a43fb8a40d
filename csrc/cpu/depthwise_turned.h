#pragma once
// Where channels do not come last and planes are small: rows of a few numbers leave lanes empty, and each plane begins
// with its own weights. So as many planes as a register has lanes are turned into pixels with channels last, with zeros
// around them, and what comes out is turned back; both stay in the first level of cache.
#include "depthwise_lines.h"
#include "transpose.h"

namespace crest::CREST_ISA {

constexpr int64_t turned_bytes = 30 << 10;                         // of x and y
constexpr int64_t widest_turned = register_bytes == 64 ? 12 : 28;  // rows of y, longer ones are faster as they are
constexpr int64_t most_turned = 2 * 28 * 28;                       // pixels of x

// Planes [begin, end), at least V::width, of one image; false if another way is faster.
template <int K, int S>
bool turned_planes(const DepthwiseConv2d& a, int64_t begin, int64_t end) {
  using V = Vec<float>;
  constexpr int line = V::width;
  if (a.left < 0 || a.out_w > widest_turned || a.h * a.w > most_turned) return false;
  const int64_t width = max((a.out_w - 1) * S + K, a.left + a.w), row = width * line;
  const int64_t fit = turned_bytes / static_cast<int64_t>(sizeof(float)) / line;  // pixels of x and y
  const int64_t fitting = min((fit - K * width) / (S * width + a.out_w), a.out_h);
  if (a.out_w < least_columns || fitting < min(a.out_h, int64_t{4})) return false;
  const int64_t parts = (a.out_h + fitting - 1) / fitting, most = (a.out_h + parts - 1) / parts;  // of about one height
  const auto compute = line_rows_for<K, S, line>(a.out_w);
  alignas(64) float x[turned_bytes / sizeof(float)], weight[K * K * line], bias[line] = {};
  int32_t place[most_turned];  // of a pixel of x, from the start of the first row
  for (int64_t r = 0; r < a.h; ++r)
    for (int64_t q = 0; q < a.w; ++q) place[r * a.w + q] = static_cast<int32_t>(r * row + (q + a.left) * line);
  for (int64_t i = 0; i < a.out_h; i += most) {
    const int64_t rows = min(most, a.out_h - i), height = (rows - 1) * S + K, top = i * S - a.top;
    const int64_t from = max(int64_t{0}, top), to = min(a.h, top + height);
    float* y = x + height * row;
    __builtin_memset(x, 0, static_cast<size_t>(height * row) * sizeof(float));
    for (int64_t next = begin; next < end; next += line) {
      const int64_t plane = min(next, end - line), channel = plane % a.out_c;  // the last ones go over some again
      turn<V>(static_cast<const float*>(a.x) + (plane * a.h + from) * a.w, a.h * a.w, (to - from) * a.w,
              [&](int64_t p) { return x + (from - top) * row + place[p]; });
      turn<V>(static_cast<const float*>(a.weight) + channel * K * K, K * K, K * K,
              [&](int64_t t) { return weight + (a.flip ? K * K - 1 - t : t) * line; });
      if (a.bias) std::memcpy(bias, static_cast<const float*>(a.bias) + channel, sizeof bias);
      compute(a, x, row, weight, bias, rows, y, line);
      turn_back<V>(y, line, rows * a.out_w, static_cast<float*>(a.y) + (plane * a.out_h + i) * a.out_w,
                   a.out_h * a.out_w);
    }
  }
  return true;
}

}  // namespace crest::CREST_ISA
