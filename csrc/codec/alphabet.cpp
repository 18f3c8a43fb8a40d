#include "alphabet.h"

#include <algorithm>
#include <cmath>

namespace crest::codec {
namespace {

// Half octaves for few values, 1/16 octaves and finer for many: a coarse alphabet costs little and loses little.
constexpr std::array<uint32_t, 16> kNarrow = {0,   16,  23,  32,  45,  64,   91,   128,
                                              181, 256, 362, 512, 724, 1024, 1448, 2048};

uint32_t weight(uint8_t code, bool wide) {
  if (!wide) return kNarrow[code];
  return code ? (16u + (code & 15)) << (code >> 4) : 0;
}

std::vector<uint8_t> narrow_codes(const Counts& counts, uint64_t most) {
  std::vector<uint8_t> codes;
  for (uint64_t count : counts) {
    uint8_t code = count != 0;
    // 1.19 is half a step: the nearest.
    while (count && code < 15 && uint64_t{kNarrow[code + 1]} * 100 * most <= count * 2048 * 119) ++code;
    codes.push_back(code);
  }
  return codes;
}

std::vector<uint8_t> wide_codes(const Counts& counts, uint64_t most) {
  std::vector<uint8_t> codes;
  for (uint64_t count : counts) {
    const uint64_t scaled = std::max<uint64_t>(17, count * (31u << 15) / most);
    int octave = 0;
    while (scaled >> octave >= 32) ++octave;
    codes.push_back(count ? uint8_t(octave << 4 | (scaled >> octave & 15)) : 0);
  }
  return codes;
}

}  // namespace

const std::array<uint64_t, kSlots + 1> kPrices = [] {
  std::array<uint64_t, kSlots + 1> p{uint64_t{64} << 16};
  for (uint32_t f = 1; f <= kSlots; ++f) p[f] = uint64_t(std::lround(65536 * (kSlotBits - std::log2(double(f)))));
  return p;
}();

// Frequencies in proportion to the weights, at least 1, with a sum of 4096: docs/format.md says exactly how.
Alphabet Alphabet::of(std::vector<uint8_t> weights, bool wide) {
  Alphabet a;
  a.weights_ = std::move(weights);
  a.wide_ = wide;
  uint64_t total = 0;
  for (uint8_t code : a.weights_) total += weight(code, wide);
  if (total == 0) refuse("an alphabet must have a symbol with a weight");
  const auto last = a.freq_.begin() + a.size();
  int64_t left = kSlots;
  for (int i = 0; i < a.size(); ++i) {
    const uint64_t w = weight(a.weights_[i], wide);
    a.freq_[i] = w ? uint16_t(std::max<uint64_t>(1, w * kSlots / total)) : 0;
    left -= a.freq_[i];
  }
  for (; left < 0; ++left) --*std::max_element(a.freq_.begin(), last);
  *std::max_element(a.freq_.begin(), last) += uint16_t(left);
  for (int i = 1; i < a.size(); ++i) a.start_[i] = uint16_t(a.start_[i - 1] + a.freq_[i - 1]);
  return a;
}

Alphabet Alphabet::fit(const Counts& counts) {
  const uint64_t most = std::max<uint64_t>(1, *std::max_element(counts.begin(), counts.end()));
  const Alphabet narrow = of(narrow_codes(counts, most), false), wide = of(wide_codes(counts, most), true);
  return narrow.cost(counts) <= wide.cost(counts) ? narrow : wide;
}

uint64_t Alphabet::cost(const Counts& counts) const {
  uint64_t sum = (wide_ ? 8 : 4) * uint64_t(size()) << 16;
  for (int i = 0; i < size(); ++i) sum += counts[i] * price(freq_[i]);
  return sum;
}

void Alphabet::write(Sink& out) const {
  out.varint(uint64_t(size() - 1) << 1 | wide_);
  if (wide_)
    for (uint8_t code : weights_) out.byte(code);
  else
    for (int i = 0; i < size(); i += 2) out.byte(weights_[i] | (i + 1 < size() ? weights_[i + 1] << 4 : 0));
}

Alphabet Alphabet::read(Source& in, const char* what) {
  const uint64_t head = in.varint(what, 2 * kMaxSymbols - 1);
  const bool wide = head & 1;
  std::vector<uint8_t> weights((head >> 1) + 1);
  uint8_t pair = 0;
  for (size_t i = 0; i < weights.size(); ++i) {
    if (wide || i % 2 == 0) pair = in.byte(what);
    weights[i] = wide ? pair : i % 2 ? pair >> 4 : pair & 15;
  }
  if (!wide && weights.size() % 2 && pair >> 4) refuse(what, " must have 0 in its last 4 bits");
  return of(std::move(weights), wide);
}

SymbolReader::SymbolReader(const Alphabet& a) {
  for (int s = 0; s < a.size(); ++s)
    for (uint32_t i = 0; i < a.freq_[s]; ++i)
      entries_[a.start_[s] + i] = uint32_t(a.freq_[s] - 1) << 20 | i << 8 | uint32_t(s);
}

}  // namespace crest::codec
