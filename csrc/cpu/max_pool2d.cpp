// Down the rows of a window into one padded row, then along it: k + k comparisons a window, in whole registers.
#include "../max_pool2d.h"

#include "every_other.h"
#include "unroll.h"

namespace crest::CREST_ISA {
namespace {

// NaN where one of them is.
template <class V>
CREST_INLINE inline V largest(V a, V b) {
  return {(b.v > a.v) | (b.v != b.v) ? b.v : a.v};
}

// The largest of `rows` rows of x, one every `step` numbers.
template <int fixed>
void down(const float* x, int64_t rows, int64_t step, int64_t w, float* line) {
  for_each_overlapping<float>(w, [&](auto v, int64_t j) CREST_INLINE {
    using V = decltype(v);
    V most = V::load(x + j);
    for (int64_t r = 1; r < (fixed ? fixed : rows); ++r) most = largest(most, V::load(x + r * step + j));
    most.store(line + j);
  });
}

// Of each of `count` windows along the line.
template <int stride, int fixed>
void along(const MaxPool2d& a, const float* line, float* y, int64_t count) {
  using V = Vec<float>;
  const int64_t taps = fixed ? fixed : a.kw;
  for (int64_t next = 0; next < count; next += V::width) {
    const int64_t j = min(next, max(count - V::width, int64_t{0}));
    const auto load = [&](int64_t tap) CREST_INLINE {
      const float* p = line + j * stride + tap * a.dilation_w;
      if constexpr (stride == 1) return V::load(p);
      return every_other<0>(V::load(p), V::load(p + V::width));
    };
    V most = load(0);
    for (int64_t t = 1; t < taps; ++t) most = largest(most, load(t));
    store_first(stride == 2 ? reorder(most) : most, y + j, static_cast<int>(min(count - j, int64_t{V::width})));
  }
}

void along_any(const MaxPool2d& a, const float* line, float* y, int64_t count) {
  using V = One<float>;
  for (int64_t j = 0; j < count; ++j) {
    const float* p = line + j * a.stride_w;
    V most = V::load(p);
    for (int64_t t = 1; t < a.kw; ++t) most = largest(most, V::load(p + t * a.dilation_w));
    most.store(y + j);
  }
}

using Columns = void (*)(const MaxPool2d&, const float* line, float* y, int64_t count);

template <int kh>
void pool(const MaxPool2d& a, float* line, int64_t begin, int64_t end, Columns columns) {
  const float lowest = -__builtin_inff();
  const int64_t numbers = a.line_numbers(), step = a.dilation_h * a.x_row;
  for (int64_t i = 0; i < numbers; ++i) line[i] = lowest;
  const int64_t outputs = end * a.out_h, together = a.rows_together();
  int64_t plane = begin, i = 0;
  const auto planes = [&] { return a.x + plane / a.channels * a.x_image + plane % a.channels * a.x_plane; };
  const float* x = planes();
  for (int64_t row = begin * a.out_h, count; row < outputs; row += count) {
    count = min(together, outputs - row);
    for (float* to = line + a.left; to < line + a.left + count * a.w; to += a.w) {
      const int64_t from = i * a.stride_h - a.top;
      const int64_t first = from < 0 ? (a.dilation_h - 1 - from) / a.dilation_h : 0;
      const int64_t last = min((a.h - from + a.dilation_h - 1) / a.dilation_h, a.kh);  // before that the row is inside
      const float* rows = x + (from + first * a.dilation_h) * a.x_row;
      if (last - first == a.kh)
        down<kh>(rows, a.kh, step, a.w, to);
      else if (first < last)
        down<0>(rows, last - first, step, a.w, to);
      else
        for (int64_t j = 0; j < a.w; ++j) to[j] = lowest;
      if (++i == a.out_h) i = 0, ++plane, x = planes();
    }
    columns(a, line, a.y + row * a.out_w, count * a.out_w);
  }
}

}  // namespace

void max_pool2d(const MaxPool2d& a, float* line, int64_t begin, int64_t end) {
  const auto columns = a.stride_w == 2   ? (a.kw == 2   ? along<2, 2>
                                            : a.kw == 3 ? along<2, 3>
                                                        : along<2, 0>)
                       : a.stride_w == 1 ? along<1, 0>
                                         : along_any;
  (a.kh == 2 ? pool<2> : a.kh == 3 ? pool<3> : pool<0>)(a, line, begin, end, columns);
}

}  // namespace crest::CREST_ISA
