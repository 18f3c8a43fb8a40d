// stem_conv2d: rows of x, with their padding, into a window that stays in cache, and its product with the weight.
#include "../stem_conv2d.h"

#include "outputs.h"
#include "transpose.h"

namespace crest::CREST_ISA {
namespace {

using V = Vec<float>;

// The rows of x that row `row` of y is made from.
inline void fill(const StemConv2d& a, int64_t row, float* window) {
  const int64_t image = row / a.out_h, i = row % a.out_h, pitch = a.pitch();
  const int64_t begin = min(a.left, pitch), end = min(a.left + a.w, pitch);
  for (int64_t c = 0; c < a.c; ++c)
    for (int64_t r = 0; r < a.kh; ++r, window += pitch) {
      const int64_t from = i * a.stride_h - a.top + r * a.dilation_h;
      if (from < 0 || from >= a.h) {
        std::memset(window, 0, pitch * sizeof(float));
        continue;
      }
      const float* x = a.x + image * a.step_n + c * a.step_c + from * a.step_h;
      std::memset(window, 0, begin * sizeof(float));
      if (a.step_w == 1)
        std::memcpy(window + begin, x, (end - begin) * sizeof(float));
      else
        for (int64_t j = begin; j < end; ++j) window[j] = x[(j - begin) * a.step_w];
      std::memset(window + end, 0, (pitch - end) * sizeof(float));
    }
}

// Where a row's outputs of a panel go: (out_w, pitch).
struct Row {
  float* y;
  int64_t pitch;
};

// Of a row of y, pixels from the one on that x is the first number for, with `registers` registers of outputs.
template <int pixels, int registers>
inline void product(const StemConv2d& a, const float* x, const float* weight, const V* bias, Row to, int count) {
  V sum[pixels * registers];
  unroll<pixels * registers>([&](auto i) CREST_INLINE { sum[i] = bias[i % registers]; });
  const int64_t pitch = a.pitch();
  for (int64_t row = 0; row < a.c * a.kh; ++row, x += pitch)
    for (int64_t t = 0; t < a.kw; ++t, weight += stem_outputs) {
      const float* at = x + t * a.dilation_w;
      V w[registers];
      unroll<registers>([&](auto v) CREST_INLINE { w[v] = V::load(weight + v * V::width); });
      unroll<pixels>([&](auto p) CREST_INLINE {
        const V seen = V::all(*at);
        at += a.stride_w;
        unroll<registers>([&](auto v)
                              CREST_INLINE { sum[p * registers + v] = fma(seen, w[v], sum[p * registers + v]); });
      });
    }
  store_outputs<pixels, registers>(sum, a.activation, to.y, to.pitch, count);
}

// All pixels of the row from x on: as many at a time as can be, then fewer.
template <int registers, int most = most_pixels>
inline void products(const StemConv2d& a, const float* x, int64_t pixels, const float* weight, const V* bias, Row to,
                     int count) {
  for (; pixels >= most; pixels -= most, x += most * a.stride_w, to.y += most * to.pitch)
    product<most, registers>(a, x, weight, bias, to, count);
  if constexpr (most > 1)
    if (pixels) products<registers, most / 2>(a, x, pixels, weight, bias, to, count);
}

// A row (out_w, pitch) of `outputs` outputs to their planes, the first of which begins at y.
inline void to_planes(const StemConv2d& a, Row row, int64_t outputs, float* y) {
  const int64_t plane = a.out_h * a.out_w;
  int64_t o = 0;
  for (; o + V::width <= outputs; o += V::width) turn_back<V>(row.y + o, row.pitch, a.out_w, y + o * plane, plane);
  if (o < outputs) turn_back<V>(row.y + o, row.pitch, a.out_w, y + o * plane, plane, static_cast<int>(outputs - o));
}

// A row in each of so many planes is to be written. They lie far apart, so that each would come from memory by itself;
// asked for at once, they come together, and while the row is computed.
inline void ask_for(const StemConv2d& a, const float* y, int64_t outputs) {
  constexpr int64_t line = 64 / sizeof(float);
  for (int64_t o = 0; o < outputs; ++o, y += a.out_h * a.out_w)
    for (int64_t j = 0; j < a.out_w; j += line) __builtin_prefetch(y + j, 1);
}

}  // namespace

void stem_conv2d_pack(const StemConv2d& a, float* packed, int64_t begin, int64_t end) {
  const int64_t taps = a.taps();
  packed += begin * taps * stem_outputs;
  for (int64_t o = begin * stem_outputs; o < end * stem_outputs; o += stem_outputs)
    for (int64_t t = 0; t < taps; ++t)
      for (int64_t l = 0; l < stem_outputs; ++l) *packed++ = o + l < a.m ? a.weight[(o + l) * taps + t] : 0;
}

void stem_conv2d(const StemConv2d& a, const float* packed, float* window, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    fill(a, row, window);
    for (int64_t panel = 0; panel < a.panels(); ++panel) {
      const int64_t first = panel * stem_outputs;
      const int64_t outputs = min(a.m - first, stem_outputs);
      const float* weight = packed + first * a.taps();
      const int64_t image = row / a.out_h, i = row % a.out_h;
      float* planes = a.y + ((image * a.m + first) * a.out_h + i) * a.out_w;
      const Row to = a.channels_last ? Row{a.y + row * a.out_w * a.m + first, a.m}
                                     : Row{window + a.window_numbers(), stem_outputs};
      if (!a.channels_last) ask_for(a, planes, outputs);
      for_each_pair(outputs, a.bias ? a.bias + first : nullptr,
                    [&](auto registers, int64_t o, int count, const V* bias) {
                      products<registers>(a, window, a.out_w, weight + o, bias, {to.y + o, to.pitch}, count);
                    });
      if (!a.channels_last) to_planes(a, to, outputs, planes);
    }
  }
}

}  // namespace crest::CREST_ISA
