#include "panel.h"
#include "transpose.h"

namespace crest::CREST_ISA {

void pack(const Pack& a, int64_t begin, int64_t end) {
  dispatch(a.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    using A = Acc<T>;
    using V = Vec<A>;
    const int64_t n = a.panels.n, k = a.panels.k;
    for (int64_t p = 0; p < panel_count<A>(a.panels); ++p) {
      const int64_t row = p * full_panel<A>;
      const T* x = static_cast<const T*>(a.matrix) + row * k;
      A* data = panel<A>(a.panels, p);
      with_row<A>(a.panels, p, [&](auto features) {
        constexpr int width = features.width;
        const int rows = static_cast<int>(min<int64_t>(n - row, width));
        int64_t j = begin;
        for (; j + V::width <= end; j += V::width) {
          for (int r = 0; r < width; r += V::width) {
            V square[V::width];
            for (int i = 0; i < V::width; ++i) square[i] = r + i < rows ? V::load(x + (r + i) * k + j) : V::zero();
            transpose(square);
            for (int i = 0; i < V::width; ++i) square[i].store(data + (j + i) * width + r);
          }
        }
        for (; j < end; ++j)
          for (int r = 0; r < width; ++r) data[j * width + r] = r < rows ? widen(x[r * k + j]) : A{0};
      });
    }
  });
}

void unpack(const Unpack& a, int64_t begin, int64_t end) {
  dispatch(a.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    using A = Acc<T>;
    using V = Vec<A>;
    const T* bias = static_cast<const T*>(a.bias);
    const int64_t n = a.panels.n, k = a.panels.k;
    for (int64_t p = 0; p < panel_count<A>(a.panels); ++p) {
      const int64_t row = p * full_panel<A>;
      T* y = static_cast<T*>(a.matrix) + row * k;
      const A* data = panel<A>(a.panels, p);
      with_row<A>(a.panels, p, [&](auto features) {
        constexpr int width = features.width;
        const int rows = static_cast<int>(min<int64_t>(n - row, width));
        int64_t j = begin;
        for (; j + V::width <= end; j += V::width) {
          const V offset = bias ? V::load(bias + j) : V::zero();
          for (int r = 0; r < rows; r += V::width) {
            V square[V::width];
            for (int i = 0; i < V::width; ++i) square[i] = V::load(data + (j + i) * width + r);
            transpose(square);
            for (int i = 0; i < min(rows - r, V::width); ++i) (square[i] + offset).store(y + (r + i) * k + j);
          }
        }
        for (; j < end; ++j)
          for (int r = 0; r < rows; ++r) narrow(data[j * width + r] + (bias ? widen(bias[j]) : A{0}), y[r * k + j]);
      });
    }
  });
}

}  // namespace crest::CREST_ISA
