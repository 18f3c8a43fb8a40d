#include "values.h"

#include <algorithm>

namespace crest::codec {
namespace {

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

// A hash table that numbers words as they come.
template <class Word>
class Numbers {
 public:
  explicit Numbers(const std::vector<Word>& words) {
    number_.fill(kNone);
    for (Word w : words) (*this)(w);
  }

  // The number of a word; a new one gets the next. To be called for at most kMaxSymbols + 1 different words.
  int operator()(Word w) {
    size_t at = size_t(uint64_t{w} * 0x9e3779b97f4a7c15 >> 54);
    while (number_[at] != kNone && word_[at] != w) at = (at + 1) % kPlaces;
    if (number_[at] == kNone) {
      word_[at] = w;
      number_[at] = size_++;
    }
    return number_[at];
  }

 private:
  static constexpr size_t kPlaces = 1024;  // four times as many as words
  static constexpr int kNone = -1;
  std::array<Word, kPlaces> word_{};
  std::array<int, kPlaces> number_;
  int size_ = 0;
};

// All words that occur, ascending, or none if they are more than an alphabet holds.
template <class Word>
std::vector<Word> distinct(const std::vector<Word>& words) {
  Numbers<Word> number({});
  std::vector<Word> list;
  for (Word w : words) {
    if (size_t(number(w)) < list.size()) continue;
    if (list.size() == kMaxSymbols) return {};
    list.push_back(w);
  }
  std::sort(list.begin(), list.end());
  return list;
}

// How often each number occurs that the highest bits of a word make.
template <class Word>
Counts highest(const std::vector<Word>& words, int bits) {
  Counts counts(size_t{1} << bits);
  for (Word w : words) ++counts[w >> (kWidth<Word> - bits)];
  return counts;
}

}  // namespace

template <class Word>
Values<Word>::Values(Split split, int shift, Word used) : split_(split), shift_(shift) {
  while (trailing_ < shift && !(used >> trailing_ & 1)) ++trailing_;
}

template <class Word>
template <class Each>
void Values<Word>::split(const std::vector<Word>& words, Each each) const {
  constexpr Word sign = kTop<Word>;
  const int bits = raw_bits();
  if (split_ == Split::top)
    for (Word w : words) each((w >> shift_) - first_, low(w, shift_) >> trailing_, bits);
  if (split_ == Split::rotated)
    for (Word w : words) {
      const uint64_t rest = low(w, shift_) >> trailing_;
      each((Word(w & ~sign) >> shift_) - first_, rest | uint64_t{(w & sign) != 0} << (bits - 1), bits);
    }
  if (split_ == Split::zigzag)
    for (Word w : words) {
      const Word z = zigzag(w);
      const uint64_t symbol = octave_symbol(z);
      each(symbol - first_, low(z, octave_bits(symbol)), octave_bits(symbol));
    }
  if (split_ == Split::palette) {
    Numbers<Word> number(list_);
    for (Word w : words) each(uint64_t(number(w)), 0, 0);
  }
}

template <class Word>
Values<Word> Values<Word>::fit(const std::vector<Word>& words, bool floating) {
  Values best(Split::top, 0, 0);
  uint64_t least = ~uint64_t{0};
  // counts[i]: of the number v.first_ + i. Those at both ends that do not occur get no symbol.
  const auto propose = [&](Values v, const Counts& counts, uint64_t raw) {
    const auto occurs = [](uint64_t count) { return count > 0; };
    const auto begin = std::find_if(counts.begin(), counts.end(), occurs);
    const Counts some(begin, std::find_if(counts.rbegin(), counts.rend(), occurs).base());
    v.first_ += uint64_t(begin - counts.begin());
    if (some.size() > kMaxSymbols || v.first_ > kMaxFirst) return;
    v.alphabet_ = Alphabet::fit(some);
    const uint64_t list = 8 * uint64_t(v.list_bytes()) * v.list_.size();
    const uint64_t cost = ((raw + list) << 16) + v.alphabet_.cost(some);
    if (cost > least) return;
    least = cost;
    best = std::move(v);
  };
  Word used = 0;
  for (Word w : words) used |= w;
  if (const std::vector<Word> list = distinct(words); !list.empty()) {
    Values v(Split::palette, used ? __builtin_ctzll(used) : 0, 1);
    v.list_ = list;
    Counts counts(list.size());
    v.split(words, [&](uint64_t symbol, uint64_t, int) { ++counts[symbol]; });
    propose(v, counts, 0);
  }
  if (floating) {
    // The exponent, whose bits are fewest in the formats of few bits, and up to 3 to 6 bits of the mantissa.
    constexpr int width = kWidth<Word>, fewest = width == 8 ? 3 : width == 16 ? 5 : 8;
    constexpr int most = width == 8 ? 7 : width == 64 ? 14 : 11;
    Counts top = highest(words, 1 + most);
    for (int bits = most; bits >= fewest; --bits) {
      Counts rotated(top.begin(), top.begin() + (1 << bits));
      for (size_t i = 0; i < rotated.size(); ++i) rotated[i] += top[rotated.size() + i];
      const int shift = width - 1 - bits;
      const Values r(Split::rotated, shift, Word(used & ~kTop<Word>)), t(Split::top, shift, used);
      propose(r, rotated, words.size() * uint64_t(r.raw_bits()));
      propose(t, top, words.size() * uint64_t(t.raw_bits()));
      for (size_t i = 0; i < top.size() / 2; ++i) top[i] = top[2 * i] + top[2 * i + 1];
      top.resize(top.size() / 2);
    }
  } else {
    Values octaves(Split::zigzag, 0, 0);
    Counts counts(octave_symbol(Word(-1)) + 1);
    uint64_t raw = 0;
    octaves.split(words, [&](uint64_t symbol, uint64_t, int bits) {
      ++counts[symbol];
      raw += uint64_t(bits);
    });
    propose(octaves, counts, raw);
    const auto [lowest, highest] = std::minmax_element(words.begin(), words.end());
    if (uint64_t{*highest} - *lowest >= kMaxSymbols) return best;
    Values v(Split::top, 0, 0);
    v.first_ = *lowest;
    Counts plain(kMaxSymbols);
    v.split(words, [&](uint64_t symbol, uint64_t, int) { ++plain[symbol]; });
    propose(v, plain, 0);
  }
  return best;
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
  Values v(Split::top, 0, 0);
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
  Bytes symbols(words.size());
  uint8_t* next = symbols.data();
  if (list_.empty()) raw.bytes.reserve(raw.bytes.size() + words.size() * uint64_t(raw_bits()) / 8 + 8);
  split(words, [&](uint64_t symbol, uint64_t rest, int bits) {
    *next++ = uint8_t(symbol);
    raw.bits(rest, bits);
  });
  raw.finish();
  out.reserve(words.size());
  for (size_t i = words.size(); i-- > 0;) alphabet_.put(out, int(i % lanes), symbols[i]);
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
