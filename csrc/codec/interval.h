#pragma once
// Binary arithmetic coding: every bit shrinks an interval of 32-bit numbers in proportion to its probability, and
// leading bytes on which both ends agree are written. Unlike the states of rans.h it runs forwards in both directions,
// so a model may learn from each bit before it meets the next.
#include <algorithm>

#include "bytes.h"

namespace crest::codec {

constexpr int kCertain = 1 << 16;  // a probability of 1

class Interval {
 protected:
  // The last number of the part that belongs to a 1 of probability p, 0 < p < kCertain: both parts hold one at least.
  uint32_t split(uint32_t p) const {
    const uint32_t size = high_ - low_;
    return low_ + (size >> 16) * p + ((size & 0xffff) * p >> 16);
  }
  void enter(bool bit, uint32_t last) { (bit ? high_ : low_) = bit ? last : last + 1; }
  bool agreed() const { return (low_ ^ high_) >> 24 == 0; }
  void shift() {
    low_ <<= 8;
    high_ = high_ << 8 | 0xff;
  }

  uint32_t low_ = 0, high_ = ~uint32_t{0};
};

class BitEncoder : Interval {
 public:
  Bytes bytes;

  bool code(uint32_t p, bool bit) {
    enter(bit, split(p));
    for (; agreed(); shift()) bytes.push_back(uint8_t(high_ >> 24));
    return bit;
  }

  // The fewest bytes that, zeros after them, lie in the interval.
  void finish() {
    for (int count = 0; count <= 4; ++count) {
      const uint64_t step = uint64_t{1} << (32 - 8 * count), at = (low_ + step - 1) / step * step;
      if (at > high_) continue;
      for (int i = 0; i < count; ++i) bytes.push_back(uint8_t(at >> (24 - 8 * i)));
      return;
    }
  }
};

// Bytes after the last one are zeros.
class BitDecoder : Interval {
 public:
  explicit BitDecoder(Source source) : in_(source) {
    for (int i = 0; i < 4; ++i) number_ = number_ << 8 | next();
  }

  bool code(uint32_t p, bool) {
    const uint32_t last = split(p);
    const bool bit = number_ <= last;
    enter(bit, last);
    for (; agreed(); shift()) number_ = number_ << 8 | next();
    return bit;
  }

  void finish() { in_.finish(); }

 private:
  uint8_t next() { return in_.left() ? in_.byte("") : 0; }

  Source in_;
  uint32_t number_ = 0;
};

}  // namespace crest::codec
