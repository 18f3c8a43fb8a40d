#pragma once
// Up to 256 symbols and how many of the coder's slots each has.
#include <array>

#include "rans.h"

namespace crest::codec {

constexpr int kMaxSymbols = 256;

using Counts = std::vector<uint64_t>;  // how often each symbol occurs

// 65536 * log2(4096 / freq): what one symbol of that frequency costs, in 1/65536 bit. Integers, so that every machine
// makes the same choices. For freq 0, more than any choice can afford.
extern const std::array<uint64_t, kSlots + 1> kPrices;
inline uint64_t price(uint32_t freq) { return kPrices[freq]; }

class Alphabet {
 public:
  // The one that codes these counts in the fewest bits, itself included.
  static Alphabet fit(const Counts& counts);

  void write(Sink& out) const;
  static Alphabet read(Source& in, const char* what);

  int size() const { return int(weights_.size()); }
  uint64_t cost(const Counts& counts) const;  // of the symbols and of the alphabet, in 1/65536 bit

  void put(Encoder& out, int lane, int symbol) const { out.put(lane, freq_[symbol], start_[symbol]); }

 private:
  friend class SymbolReader;
  static Alphabet of(std::vector<uint8_t> weights, bool wide);

  std::vector<uint8_t> weights_;  // as stored
  bool wide_ = false;
  std::array<uint16_t, kMaxSymbols> freq_{}, start_{};
};

// The same, by slot: 16 KB.
class SymbolReader {
 public:
  explicit SymbolReader(const Alphabet& alphabet);

  int take(Decoder& in, int lane) const {
    const uint32_t e = entries_[in.slot(lane)];
    in.take(lane, (e >> 20) + 1, e >> 8 & (kSlots - 1));
    return int(e & 0xff);
  }

 private:
  std::array<uint32_t, kSlots> entries_;  // frequency - 1, place in the interval, symbol
};

}  // namespace crest::codec
