#pragma once
// Which taps of a kernel fall on an image: what the loops for kernels of any size share.
#include "vec.h"

namespace crest::CREST_ISA {

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
