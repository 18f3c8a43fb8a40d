#pragma once
// Which taps of a kernel fall on an image: what the loops for kernels of any size share; and which have loops of their
// own.
#include "unroll.h"

namespace crest::CREST_ISA {

// Whether kernels of common sizes have loops of their own for T. They are most of what is compiled here, and not worth
// it for double, nor for a CPU without AVX2, nor for half precision on NEON, where what they would give is not known.
#if defined(__aarch64__)
template <class T>
constexpr bool own_loops = sizeof(T) == sizeof(float);
#elif defined(__SSE2__) && !defined(__AVX2__)
template <class T>
constexpr bool own_loops = false;
#else
template <class T>
constexpr bool own_loops = sizeof(T) < sizeof(double);
#endif

// f(Index<K>{}, Index<S>{}) for a kernel of K x K with a stride of S that has loops of its own; false if it has none.
template <class T, class F>
inline bool with_kernel(int64_t kernel, int64_t stride, const F& f) {
  if constexpr (own_loops<T>) {
    if (kernel == 3 && stride == 1) return f(Index<3>{}, Index<1>{}), true;
    if (kernel == 3 && stride == 2) return f(Index<3>{}, Index<2>{}), true;
    if (kernel == 5 && stride == 1) return f(Index<5>{}, Index<1>{}), true;
    if (kernel == 5 && stride == 2) return f(Index<5>{}, Index<2>{}), true;
  }
  return false;
}

// Of one dimension: taps first, first + step, ... below end fall on elements at, at + advance, ...
struct Taps {
  int64_t first, end, step, at, advance;

  // Tap r falls on element (position + r dilation) / spread, if spread divides that.
  Taps(int64_t position, int64_t count, int64_t dilation, int64_t spread, int64_t size)
      : first(0), end(count), step(1), at(position), advance(dilation) {
    if (spread > 1) {
      while (first < count && (position + first * dilation) % spread != 0) ++first;
      while (step * dilation % spread != 0) ++step;
      at = (position + first * dilation) / spread;
      advance = step * dilation / spread;
    }
    if (at < 0) {
      const int64_t skipped = (-at + advance - 1) / advance;
      first += skipped * step;
      at += skipped * advance;
    }
    const int64_t fit = at < size ? (size - at + advance - 1) / advance : 0;  // so many are within the image
    end = min(end, first + fit * step);
  }
};

}  // namespace crest::CREST_ISA
