#include "values.h"

#include <algorithm>

namespace crest::codec {
namespace {

constexpr size_t kSample = 1 << 16;
constexpr uint64_t kMaxFirst = uint64_t{1} << 62;  // what a varint is sure to hold

template <class Word>
constexpr int kWidth = 8 * sizeof(Word);

template <class Word>
constexpr Word kTop = Word(Word{1} << (kWidth<Word> - 1));

template <class Word>
Word zigzag(Word w) {
  return Word(w << 1) ^ Word(w & kTop<Word> ? -1 : 0);
}

template <class Word>
Word unzigzag(Word z) {
  return Word(z >> 1) ^ Word(z & 1 ? -1 : 0);
}

int floor_log2(uint64_t value) { return 63 - __builtin_clzll(value); }

// Zigzag: 0 to 15 as they are, then four symbols an octave.
uint64_t octave_symbol(uint64_t z) {
  const int octave = z < 16 ? 0 : floor_log2(z);
  return octave ? 16 + 4 * uint64_t(octave - 4) + (z >> (octave - 2) & 3) : z;
}
int octave_bits(uint64_t symbol) { return symbol < 16 ? 0 : int((symbol - 16) / 4) + 2; }
uint64_t octave_base(uint64_t symbol) { return symbol < 16 ? symbol : (4 + symbol % 4) << octave_bits(symbol); }

// All words that occur, or none if they are more than an alphabet holds.
template <class Word>
std::vector<Word> distinct(const std::vector<Word>& words) {
  std::vector<Word> list;
  for (Word w : words) {
    const auto at = std::lower_bound(list.begin(), list.end(), w);
    if (at != list.end() && *at == w) continue;
    if (list.size() == kMaxSymbols) return {};
    list.insert(at, w);
  }
  return list;
}

}  // namespace

template <class Word>
typename Values<Word>::Token Values<Word>::token(Word w) const {
  constexpr Word sign = kTop<Word>;
  switch (split_) {
    case Split::top: return {(w >> shift_) - first_, low(w, shift_) >> trailing_, raw_bits()};
    case Split::rotated: {
      const uint64_t rest = low(w, shift_) >> trailing_;
      return {(Word(w & ~sign) >> shift_) - first_, rest | uint64_t{(w & sign) != 0} << (shift_ - trailing_),
              raw_bits()};
    }
    case Split::zigzag: {
      const Word z = zigzag(w);
      const uint64_t symbol = octave_symbol(z);
      return {symbol - first_, low(z, octave_bits(symbol)), octave_bits(symbol)};
    }
    case Split::palette: break;
  }
  return {uint64_t(std::lower_bound(list_.begin(), list_.end(), w) - list_.begin()), 0, 0};
}

template <class Word>
Values<Word> Values<Word>::fit(const std::vector<Word>& words, bool floating) {
  constexpr Word rest = Word(~kTop<Word>);
  Word lowest = Word(-1), highest = 0, lowest_rest = rest, highest_rest = 0, used = 0;
  uint64_t lowest_octave = ~uint64_t{0}, highest_octave = 0;
  for (Word w : words) {
    lowest = std::min(lowest, w);
    highest = std::max(highest, w);
    lowest_rest = std::min(lowest_rest, Word(w & rest));
    highest_rest = std::max(highest_rest, Word(w & rest));
    used |= w;
    if (floating) continue;
    lowest_octave = std::min(lowest_octave, octave_symbol(zigzag(w)));
    highest_octave = std::max(highest_octave, octave_symbol(zigzag(w)));
  }
  std::vector<Values> models;
  std::vector<uint64_t> sizes;
  const auto propose = [&](Split split, int shift, uint64_t first, uint64_t last) {
    if (last - first >= kMaxSymbols || first > kMaxFirst) return;
    Values v;
    v.split_ = split;
    v.shift_ = shift;
    v.first_ = first;
    const uint64_t low_used = split == Split::rotated ? used & rest : used;
    while (v.trailing_ < shift && !(low_used >> v.trailing_ & 1)) ++v.trailing_;
    models.push_back(v);
    sizes.push_back(last - first + 1);
  };
  // Floats: the exponent, whose bits are fewest in the formats of few bits, and up to 3 to 6 bits of the mantissa.
  constexpr int width = kWidth<Word>, fewest = width == 8 ? 3 : width == 16 ? 5 : 8;
  constexpr int most = width == 8 ? 7 : width == 64 ? 14 : 11;
  for (int bits = fewest; floating && bits <= most; ++bits) {
    const int shift = width - 1 - bits;
    propose(Split::top, shift, lowest >> shift, highest >> shift);
    propose(Split::rotated, shift, lowest_rest >> shift, highest_rest >> shift);
  }
  if (!floating) propose(Split::top, 0, lowest, highest);
  if (!floating) propose(Split::zigzag, 0, lowest_octave, highest_octave);
  if (const std::vector<Word> list = distinct(words); !list.empty()) {
    propose(Split::palette, used ? __builtin_ctzll(used) : 0, 0, list.size() - 1);
    models.back().list_ = list;
    models.back().trailing_ = 0;
  }
  const auto tally = [&](const Values& v, size_t step, Counts& counts) {
    uint64_t bits = 0;
    for (size_t i = 0; i < words.size(); i += step) {
      const Token t = v.token(words[i]);
      ++counts[t.symbol];
      bits += uint64_t(t.bits);
    }
    return bits << 16;
  };
  const size_t step = words.size() / kSample + 1;  // enough of them to choose by
  size_t best = 0;
  uint64_t least = ~uint64_t{0};
  for (size_t k = 0; k < models.size(); ++k) {
    Counts counts(sizes[k]);
    const uint64_t raw = tally(models[k], step, counts);
    const uint64_t model = 8 * uint64_t(models[k].list_bytes()) * models[k].list_.size() << 16;
    const uint64_t cost = raw + Alphabet::fit(counts).cost(counts) + model / step;
    if (cost >= least) continue;
    least = cost;
    best = k;
  }
  Counts counts(sizes[best]);
  tally(models[best], 1, counts);
  models[best].alphabet_ = Alphabet::fit(counts);
  return models[best];
}

template <class Word>
void Values<Word>::write(Sink& out) const {
  out.byte(uint64_t(split_) << 6 | uint64_t(shift_));
  if (split_ == Split::top || split_ == Split::rotated) out.byte(uint64_t(trailing_));
  if (split_ != Split::palette) out.varint(first_);
  alphabet_.write(out);
  for (Word w : list_) out.word(w >> shift_, list_bytes());
}

template <class Word>
Values<Word> Values<Word>::read(Source& in) {
  Values v;
  const uint8_t head = in.byte("values");
  v.split_ = Split(head >> 6);
  v.shift_ = head & 63;
  const int width = kWidth<Word> - (v.split_ == Split::rotated);
  const bool shifted = v.split_ == Split::top || v.split_ == Split::rotated;
  const int most_shift = v.split_ == Split::zigzag ? 1 : width;
  if (v.shift_ >= most_shift) refuse("shift must be less than ", most_shift, ", got ", v.shift_);
  if (shifted) v.trailing_ = in.byte("values");
  if (v.trailing_ > v.shift_) refuse("trailing zeros must be at most ", v.shift_, ", got ", v.trailing_);
  if (v.split_ != Split::palette) v.first_ = in.varint("first symbol", kMaxFirst);
  v.alphabet_ = Alphabet::read(in, "symbols");
  const uint64_t last = v.first_ + uint64_t(v.alphabet_.size()) - 1;
  const uint64_t most = v.split_ == Split::zigzag ? octave_symbol(Word(-1)) : low(~uint64_t{0}, width) >> v.shift_;
  if (v.split_ != Split::palette && last > most) refuse("symbols must be at most ", most, ", got ", last);
  if (v.split_ == Split::palette)
    for (int i = 0; i < v.alphabet_.size(); ++i) {
      const uint64_t word = in.word(v.list_bytes(), "palette");
      if (word > low(~uint64_t{0}, width - v.shift_)) refuse("palette must have words of ", width, " bits");
      v.list_.push_back(Word(word << v.shift_));
      if (i && v.list_[i] <= v.list_[i - 1]) refuse("palette must be ascending");
    }
  return v;
}

template <class Word>
void Values<Word>::put(Encoder& out, Sink& raw, int lanes, const std::vector<Word>& words) const {
  for (Word w : words) {
    const Token t = token(w);
    raw.bits(t.raw, t.bits);
  }
  raw.finish();
  for (size_t i = words.size(); i-- > 0;) alphabet_.put(out, int(i % lanes), int(token(words[i]).symbol));
}

template <class Word>
void Values<Word>::take(Decoder& in, int lanes, uint8_t* out, uint64_t n) const {
  const auto go = [&](auto one, auto four) { lanes == 1 ? (this->*one)(in, out, n) : (this->*four)(in, out, n); };
  if (split_ == Split::rotated)
    go(&Values::take_words<1, Split::rotated>, &Values::take_words<kMaxLanes, Split::rotated>);
  else if (split_ == Split::zigzag)
    go(&Values::take_words<1, Split::zigzag>, &Values::take_words<kMaxLanes, Split::zigzag>);
  else
    go(&Values::take_words<1, Split::top>, &Values::take_words<kMaxLanes, Split::top>);
}

template <class Word>
template <int lanes, Split split>
void Values<Word>::take_words(Decoder& shared, uint8_t* out, uint64_t n) const {
  Decoder in = shared;
  const SymbolReader reader(alphabet_);
  std::array<Word, kMaxSymbols> base{};
  std::array<uint8_t, kMaxSymbols> octave{};
  for (int s = 0; s < alphabet_.size(); ++s) {
    const uint64_t symbol = first_ + uint64_t(s);
    base[s] = Word(!list_.empty() ? list_[s] : split == Split::zigzag ? octave_base(symbol) : symbol << shift_);
    octave[s] = uint8_t(octave_bits(symbol));
  }
  const int count = raw_bits(), trailing = trailing_, rest = count - 1;
  const uint64_t below = low(~uint64_t{0}, std::max(rest, 0));
  const auto step = [&](int lane, uint64_t i) __attribute__((always_inline)) {
    const int s = reader.take(in, lane);
    const int bits = split == Split::zigzag ? octave[s] : count;
    const uint64_t raw = sizeof(Word) == 8 ? in.in.many_bits(bits) : in.in.bits(bits);
    Word w = Word(base[s] + (raw << trailing));
    if constexpr (split == Split::rotated)
      w = Word(base[s] + ((raw & below) << trailing) + (raw >> rest << (kWidth<Word> - 1)));
    if constexpr (split == Split::zigzag) w = unzigzag(Word(base[s] + raw));
    std::memcpy(out + i * sizeof(Word), &w, sizeof(Word));
  };
  in_turn(n, step, std::make_integer_sequence<int, lanes>());
  shared = in;
}

template class Values<uint8_t>;
template class Values<uint16_t>;
template class Values<uint32_t>;
template class Values<uint64_t>;

}  // namespace crest::codec
