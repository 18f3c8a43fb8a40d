#pragma once
// Words as a symbol, which is modelled, and raw bits: for a float, the symbol is its exponent and perhaps the first
// bits of its mantissa; the raw bits are the rest. Which bits are which is found by the encoder and stored.
#include "alphabet.h"

namespace crest::codec {

enum class Split : uint8_t {
  top,      // symbol: the highest bits, counted from the lowest that occurs
  rotated,  // the same without the very highest bit, which is raw: a sign says little about the rest
  zigzag,   // integers of either sign: small ones are symbols, of others the logarithm and two more bits
  palette,  // symbol: an index into the list of all words that occur
};

template <class Word>
class Values {
 public:
  // The model that codes the words in the fewest bytes; there is at least one.
  static Values fit(const std::vector<Word>& words, bool floating);

  void write(Sink& out) const;
  void put(Encoder& out, Sink& raw, int lanes, const std::vector<Word>& words) const;

  static Values read(Source& in);
  // Writes n words to `out`, which need not be aligned.
  void take(Decoder& in, int lanes, uint8_t* out, uint64_t n) const;

 private:
  // used: all bits that occur in words, for their trailing zeros.
  Values(Split split, int shift, Word used);
  // each(symbol, raw bits, how many of these) for the words in their order.
  template <class Each>
  void split(const std::vector<Word>& words, Each each) const;
  int raw_bits() const { return split_ == Split::palette ? 0 : shift_ - trailing_ + (split_ == Split::rotated); }
  int list_bytes() const { return int(sizeof(Word)) - shift_ / 8; }  // of a word, as stored
  template <int lanes, Split split>
  void take_words(Decoder& in, uint8_t* out, uint64_t n) const;

  Split split_;
  int shift_;               // top, rotated: bits below the symbol; palette: bits that are 0 in every word
  int trailing_ = 0;        // of these, how many are 0 in every word
  uint64_t first_ = 0;      // what symbol 0 stands for
  std::vector<Word> list_;  // palette: ascending
  Alphabet alphabet_;
};

}  // namespace crest::codec
