#pragma once
// Which elements of a tensor are kept: one bit each, in rows of `columns`. A bit's probability depends on the class of
// its row, the class of its column, the bit `lag` before it (for a layer on 28 x 28 images, lag 28 is the pixel above)
// and the bit before it. Classes and probabilities are found by the encoder and stored.
#include <algorithm>

#include "alphabet.h"

namespace crest::codec {

// Bits as bytes 0 or 1, with zeros before the first for contexts to look at.
class Bits {
 public:
  Bits(uint64_t n, uint64_t margin) : size(n), margin_(margin), bytes_(n + margin) {}
  uint8_t* data() { return bytes_.data() + margin_; }
  const uint8_t* data() const { return bytes_.data() + margin_; }
  const uint64_t size;

 private:
  uint64_t margin_;
  Bytes bytes_;
};

// The distance, up to 63 or one row, at which a bit tells most of another; by the first million bits. The margin of the
// bits is Plane::margin(columns). 0 if there are too few.
uint64_t find_lag(const Bits& bits, uint64_t columns);

class Plane {
 public:
  // The model that codes the bits in the fewest bytes. `columns` divides their number; their margin is margin(columns).
  static Plane fit(const Bits& bits, uint64_t columns);
  static uint64_t margin(uint64_t lag) { return std::max<uint64_t>(64, lag); }

  void write(Sink& out) const;
  void put(Encoder& out, int lanes, const Bits& bits) const;

  static Plane read(Source& in, uint64_t n, const char* what);
  Bits take(Decoder& in, int lanes);

  // One class for all, or a class for each row or column.
  struct Classes {
    std::vector<uint8_t> of{0};
    int count = 1;
    Alphabet alphabet{};  // of the classes, where there are several

    uint8_t operator[](uint64_t i) const { return count > 1 ? of[i] : 0; }
  };

 private:
  void spread();
  int contexts() const { return row_.count * column_.count << (lag_ > 0) << left_; }
  Bytes column_contexts() const;
  Counts tally(const uint8_t* bits) const;
  template <int lanes>
  void put_bits(Encoder& out, const uint8_t* bits) const;
  template <int lanes>
  void take_bits(Decoder& in, uint8_t* bits) const;

  uint64_t size_ = 0, columns_ = 0, lag_ = 0;  // lag 0: none
  bool left_ = true;                           // whether the bit before is part of the context
  Classes row_, column_;
  std::vector<uint8_t> codes_;        // probability of a 1 by context, as stored
  std::array<uint16_t, 256> ones_{};  // in slots, by row class, column class, bit lag before, bit before: 8 x 8 x 2 x 2
};

}  // namespace crest::codec
