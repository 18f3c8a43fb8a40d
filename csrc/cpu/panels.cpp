#include "panel.h"

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
        constexpr int line = max<int>(64 / sizeof(T), V::width);  // of cache, as in unpack_panel
        const int64_t whole = end - (end - begin) % V::width;
        for (int64_t j = begin; j < whole; j += line)
          for (int r = 0; r < width; r += V::width)
            for (int64_t l = j; l < min(j + line, whole); l += V::width) {
              V square[V::width];
              for (int i = 0; i < V::width; ++i) square[i] = r + i < rows ? V::load(x + (r + i) * k + l) : V::zero();
              transpose(square);
              for (int i = 0; i < V::width; ++i) square[i].store(data + (l + i) * width + r);
            }
        for (int64_t j = whole; j < end; ++j)
          for (int r = 0; r < width; ++r) data[j * width + r] = r < rows ? widen(x[r * k + j]) : A{0};
      });
    }
  });
}

void unpack(const Unpack& a, int64_t begin, int64_t end) {
  dispatch(a.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    using A = Acc<T>;
    for (int64_t p = 0; p < panel_count<A>(a.panels); ++p)
      unpack_panel<A>(a.panels, p, begin, end, static_cast<const T*>(nullptr), static_cast<T*>(a.matrix), a.panels.k);
  });
}

}  // namespace crest::CREST_ISA
