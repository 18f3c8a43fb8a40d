#include "plane.h"

#include <numeric>

namespace crest::codec {
namespace {

constexpr int kMaxClasses = 8;
constexpr int kMaxContexts = kMaxClasses * kMaxClasses * 4;
constexpr uint8_t kMostlyOnes = 0x80;
constexpr uint8_t kCodes = 73;  // below kMostlyOnes
constexpr uint64_t kSample = 1 << 20;
constexpr uint64_t kFewest = 4;  // rows and columns that classes may pay for

int context(int row, int column, int lag, int left) { return ((row * kMaxClasses + column) * 2 + lag) * 2 + left; }

// Slots of the rarer bit: 0 to 7, then eight steps an octave up to 2048.
uint32_t slots(uint8_t code) { return code < 8 ? code : (8u + (code & 7)) << (code / 8 - 1); }
uint32_t ones(uint8_t code) { return code & kMostlyOnes ? kSlots - slots(code & 0x7f) : slots(code); }

struct Tally {
  uint64_t all = 0, ones = 0;

  Tally& operator+=(const Tally& other) {
    all += other.all;
    ones += other.ones;
    return *this;
  }
  uint64_t cost(uint32_t freq) const { return ones * price(freq) + (all - ones) * price(kSlots - freq); }

  // The best probability to store: the last of at most that of the rarer bit, or the one after it.
  uint8_t code() const {
    const uint64_t rare = std::min(ones, all - ones);
    const uint64_t most = all ? std::max<uint64_t>(1, rare * kSlots / all) : kSlots / 2;
    const int octave = most < 8 ? 0 : 60 - __builtin_clzll(most);
    const uint8_t code = uint8_t(uint64_t(8 * octave) + (most >> octave));
    const uint8_t side = 2 * ones > all ? kMostlyOnes : 0, more = std::min<uint8_t>(code + 1, kCodes - 1);
    return side | (cost(codec::ones(side | more)) < cost(codec::ones(side | code)) ? more : code);
  }
  uint64_t cost() const { return (uint64_t{8} << 16) + cost(codec::ones(code())); }
};

// The ones of word(0) to word(n - 1), by arithmetic that compilers make vectors of: not every processor has a popcount.
template <class Word>
uint64_t count_ones(size_t n, Word word) {
  constexpr size_t kMost = 31;  // words whose ones are counted in bytes
  uint64_t total = 0;
  for (size_t begin = 0; begin < n; begin += kMost) {
    uint64_t bytes = 0;
    for (size_t j = begin; j < std::min(n, begin + kMost); ++j) {
      uint64_t w = word(j);
      w -= w >> 1 & 0x5555555555555555;
      w = (w & 0x3333333333333333) + (w >> 2 & 0x3333333333333333);
      bytes += (w + (w >> 4)) & 0x0f0f0f0f0f0f0f0f;
    }
    total += ((bytes & 0x00ff00ff00ff00ff) + (bytes >> 8 & 0x00ff00ff00ff00ff)) * 0x0001000100010001 >> 48;
  }
  return total;
}

// Rows, or columns, of about the same density, by Lloyd's algorithm with code length for a distance.
Plane::Classes group(const Counts& kept, uint64_t each, size_t count) {
  std::vector<uint32_t> order(kept.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) { return kept[a] < kept[b]; });
  Plane::Classes c;
  c.of.resize(kept.size());
  for (size_t i = 0; i < order.size(); ++i) c.of[order[i]] = uint8_t(i * count / order.size());
  for (int round = 0; round < 6; ++round) {
    std::array<Tally, kMaxClasses> tally{};
    for (size_t i = 0; i < kept.size(); ++i) tally[c.of[i]] += {each, kept[i]};
    std::array<uint64_t, kMaxClasses> one{}, zero{};  // the price of either bit
    for (size_t k = 0; k < count; ++k) {
      const uint32_t freq = ones(tally[k].code());
      one[k] = price(freq);
      zero[k] = price(kSlots - freq);
    }
    bool moved = false;
    for (size_t i = 0; i < kept.size(); ++i) {
      const auto cost = [&](size_t k) { return kept[i] * one[k] + (each - kept[i]) * zero[k]; };
      uint8_t best = c.of[i];
      for (uint8_t k = 0; k < count; ++k)
        if (cost(k) < cost(best)) best = k;
      moved |= best != c.of[i];
      c.of[i] = best;
    }
    if (!moved) break;
  }
  c.count = int(count);
  return c;
}

Counts histogram(const Plane::Classes& c) {
  Counts counts(size_t(c.count));
  for (uint8_t k : c.of) ++counts[k];
  return counts;
}

Plane::Classes classify(const Counts& kept, uint64_t each) {
  Tally all;
  for (uint64_t k : kept) all += {each, k};
  Plane::Classes best;
  uint64_t least = all.cost();
  for (size_t count : {2, 3, 4, 6, 8}) {
    if (count > kept.size()) break;
    Plane::Classes c = group(kept, each, count);
    c.alphabet = Alphabet::fit(histogram(c));
    uint64_t cost = c.alphabet.cost(histogram(c));
    std::array<Tally, kMaxClasses> tally{};
    for (size_t i = 0; i < kept.size(); ++i) tally[c.of[i]] += {each, kept[i]};
    for (size_t k = 0; k < count; ++k) cost += tally[k].cost();
    if (cost >= least) continue;
    least = cost;
    best = std::move(c);
  }
  return best;
}

}  // namespace

uint64_t find_lag(const Bits& bits, uint64_t columns) {
  const uint64_t n = std::min(bits.size, kSample);
  std::vector<uint64_t> words(n / 64 + 2);  // the first is 0
  for (uint64_t i = 0; i < n; ++i) words[i / 64 + 1] |= uint64_t{bits.data()[i]} << i % 64;
  const uint64_t total = count_ones(words.size(), [&](size_t j) { return words[j]; });
  uint64_t best = 0, least = ~uint64_t{0};
  for (uint64_t lag = 2; lag <= 64; ++lag) {
    const uint64_t distance = lag < 64 ? lag : columns;
    if (distance >= n) continue;
    uint64_t both = 0;
    if (lag < 64)
      both = count_ones(words.size() - 1,
                        [&, w = words.data()](size_t j) { return w[j + 1] & (w[j + 1] << lag | w[j] >> (64 - lag)); });
    else
      for (uint64_t i = 0; i < n; ++i) both += bits.data()[i] & bits.data()[int64_t(i) - int64_t(columns)];
    // The first bits come after none, so there may be more ones after a 0 than zeros.
    const uint64_t cost = Tally{total, both}.cost() + Tally{std::max(n - total, total - both), total - both}.cost();
    if (cost >= least) continue;
    least = cost;
    best = distance;
  }
  return best;
}

Plane Plane::fit(const Bits& bits, uint64_t columns) {
  Plane full;
  full.size_ = bits.size;
  full.columns_ = columns;
  const uint64_t rows = bits.size / columns;
  if (rows >= kFewest && columns >= kFewest) {
    Counts by_row(rows), by_column(columns);
    for (uint64_t r = 0; r < rows; ++r) {
      const uint8_t* b = bits.data() + r * columns;
      by_row[r] = std::accumulate(b, b + columns, uint64_t{0});
      for (uint64_t c = 0; c < columns; ++c) by_column[c] += b[c];
    }
    full.row_ = classify(by_row, columns);
    full.column_ = classify(by_column, rows);
  }
  full.lag_ = find_lag(bits, columns);
  const Counts counts = full.tally(bits.data());
  // Leave out what does not pay for itself.
  Plane best;
  uint64_t least = ~uint64_t{0};
  for (int parts = 0; parts < 16; ++parts) {
    Plane p = full;
    std::vector<Tally> merged(kMaxContexts);
    if (!(parts & 1)) p.row_ = {};
    if (!(parts & 2)) p.column_ = {};
    if (!(parts & 4)) p.lag_ = 0;
    p.left_ = parts & 8;
    if (p.row_.count * p.column_.count == 1) p.columns_ = p.size_;
    for (int i = 0; i < kMaxContexts; ++i)
      merged[context(parts & 1 ? i / 32 : 0, parts & 2 ? i / 4 % 8 : 0, parts & 4 ? i / 2 % 2 : 0,
                     parts & 8 ? i % 2 : 0)] += {counts[2 * i] + counts[2 * i + 1], counts[2 * i + 1]};
    uint64_t cost = 0;
    for (const Classes& c : {p.row_, p.column_}) cost += c.count > 1 ? c.alphabet.cost(histogram(c)) : 0;
    p.codes_.clear();
    for (int row = 0; row < p.row_.count; ++row)
      for (int column = 0; column < p.column_.count; ++column)
        for (int lag = 0; lag <= (p.lag_ > 0); ++lag)
          for (int left = 0; left <= p.left_; ++left) {
            const Tally& t = merged[context(row, column, lag, left)];
            p.codes_.push_back(t.code());
            cost += (uint64_t{8} << 16) + t.cost(ones(p.codes_.back()));
          }
    if (cost >= least) continue;
    least = parts ? cost : cost - cost / 256;  // without contexts decoding is much faster
    best = std::move(p);
  }
  best.spread();
  return best;
}

// Zeros and ones in each context. Neighbours are counted apart: most are alike, and one sum would wait for another.
Counts Plane::tally(const uint8_t* bits) const {
  constexpr size_t kApart = 4, kPart = 2 * kMaxContexts;
  const uint64_t lag = lag_ ? lag_ : margin(0), lagged = lag_ > 0;
  const Bytes column = column_contexts();
  Counts counts(kApart * kPart);
  for (uint64_t r = 0; r < size_ / columns_; ++r) {
    const uint8_t *b = bits + r * columns_, *before = b - lag, *left = b - 1;
    uint64_t* row = counts.data() + 2 * context(row_[r], 0, 0, 0);
    for (uint64_t c = 0; c < columns_; ++c) {
      const uint64_t at = (column.empty() ? 0 : column[c]) + (before[c] & lagged) * 2 + left[c];
      ++row[c % kApart * kPart + 2 * at + b[c]];
    }
  }
  for (size_t i = kPart; i < counts.size(); ++i) counts[i % kPart] += counts[i];
  return counts;
}

// Probabilities of all contexts from those that are stored.
void Plane::spread() {
  for (int row = 0; row < row_.count; ++row)
    for (int column = 0; column < column_.count; ++column)
      for (int lag = 0; lag < 2; ++lag)
        for (int left = 0; left < 2; ++left) {
          int at = row * column_.count + column;
          if (lag_) at = 2 * at + lag;
          if (left_) at = 2 * at + left;
          ones_[context(row, column, lag, left)] = uint16_t(ones(codes_[at]));
        }
}

void Plane::write(Sink& out) const {
  out.byte(uint64_t(row_.count - 1) | uint64_t(column_.count - 1) << 3 | uint64_t{left_} << 6 |
           uint64_t{lag_ > 0} << 7);
  if (lag_) out.varint(lag_);
  if (row_.count * column_.count > 1) out.varint(columns_);
  for (uint8_t code : codes_) out.byte(code);
  for (const Classes* c : {&row_, &column_})
    if (c->count > 1) c->alphabet.write(out);
}

Plane Plane::read(Source& in, uint64_t n, const char* what) {
  Plane p;
  p.size_ = p.columns_ = n;
  const uint8_t head = in.byte(what);
  p.row_.count = (head & 7) + 1;
  p.column_.count = (head >> 3 & 7) + 1;
  p.left_ = head >> 6 & 1;
  if (head >> 7) {
    p.lag_ = in.varint("lag", n);
    if (p.lag_ == 0) refuse("lag must be at least 1, got 0");
  }
  if (p.row_.count * p.column_.count > 1) {
    p.columns_ = in.varint("columns", n);
    if (p.columns_ == 0 || n % p.columns_) refuse("columns must divide ", n, ", got ", p.columns_);
  }
  p.codes_.resize(size_t(p.contexts()));
  for (uint8_t& code : p.codes_) {
    code = in.byte(what);
    if ((code & 0x7f) == 0 || (code & 0x7f) >= kCodes) refuse("probability must be 1 to 72 or 129 to 200, got ", +code);
  }
  for (Classes* c : {&p.row_, &p.column_}) {
    if (c->count == 1) continue;
    c->alphabet = Alphabet::read(in, "classes");
    if (c->alphabet.size() != c->count) refuse("classes must be ", c->count, ", got ", c->alphabet.size());
  }
  p.spread();
  return p;
}

void Plane::put(Encoder& out, int lanes, const Bits& bits) const {
  out.reserve(size_ + row_.of.size() + column_.of.size());
  lanes == 1 ? put_bits<1>(out, bits.data()) : put_bits<kMaxLanes>(out, bits.data());
  for (const Classes* c : {&column_, &row_})
    if (c->count > 1)
      for (size_t i = c->of.size(); i-- > 0;) c->alphabet.put(out, int(i % lanes), c->of[i]);
}

template <int lanes>
void Plane::put_bits(Encoder& out, const uint8_t* bits) const {
  const uint64_t lag = lag_ ? lag_ : margin(0);  // without one, any bit that is there
  const Bytes column = column_contexts();
  for (uint64_t r = size_ / columns_; r-- > 0;) {
    const uint16_t* row = ones_.data() + context(row_[r], 0, 0, 0);
    const uint8_t *b = bits + r * columns_, *before = b - lag, *left = b - 1;
    const auto freq = [&](uint64_t c) __attribute__((always_inline)) { return row[before[c] * 2 + left[c]]; };
    if (column.empty())
      out.put_bits<lanes>(columns_, b, freq);
    else
      out.put_bits<lanes>(columns_, b, [&](uint64_t c) __attribute__((always_inline)) {
        return row[column[c] + before[c] * 2 + left[c]];
      });
  }
}

// Of each column, what it adds to the number of a context; empty if that is nothing.
Bytes Plane::column_contexts() const {
  Bytes column(column_.count > 1 ? columns_ : 0);
  for (size_t c = 0; c < column.size(); ++c) column[c] = uint8_t(context(0, column_[c], 0, 0));
  return column;
}

Bits Plane::take(Decoder& in, int lanes) {
  const uint64_t sizes[] = {size_ / columns_, columns_};
  Classes* parts[] = {&row_, &column_};
  for (int k = 0; k < 2; ++k) {
    if (parts[k]->count == 1) continue;
    const SymbolReader reader(parts[k]->alphabet);
    parts[k]->of.resize(sizes[k]);
    for (uint64_t i = 0; i < sizes[k]; ++i) parts[k]->of[i] = uint8_t(reader.take(in, int(i % lanes)));
  }
  Bits bits(size_, margin(lag_));
  lanes == 1 ? take_bits<1>(in, bits.data()) : take_bits<kMaxLanes>(in, bits.data());
  return bits;
}

template <int lanes>
void Plane::take_bits(Decoder& shared, uint8_t* bits) const {
  Decoder in = shared;
  const uint64_t lag = lag_ ? lag_ : margin(0);  // without one, any bit that is there
  // Frequencies of a 1 after a 0, and what to flip in them after a 1.
  std::array<uint16_t, 256> pairs;
  for (size_t i = 0; i < pairs.size(); i += 2) {
    pairs[i] = ones_[i];
    pairs[i + 1] = ones_[i] ^ ones_[i + 1];
  }
  const Bytes column = column_contexts();
  const auto turns = std::make_integer_sequence<int, lanes>();
  if (codes_.size() == 1) {  // without contexts no bit has to wait for another
    const auto step = [&](int lane, uint64_t i)
                          __attribute__((always_inline)) { bits[i] = uint8_t(in.bit(lane, pairs[0])); };
    in_turn(size_, step, turns);
    shared = in;
    return;
  }
  uint32_t flip = 0;
  for (uint64_t r = 0; r < size_ / columns_; ++r) {
    const uint16_t* row = pairs.data() + context(row_[r], 0, 0, 0);
    uint8_t* to = bits + r * columns_;
    const uint8_t* before = to - lag;
    const auto step = [&](int lane, uint64_t c, uint64_t at) __attribute__((always_inline)) {
      const uint16_t* pair = row + at + before[c] * 2;
      const uint32_t bit = in.bit(lane, pair[0] ^ (pair[1] & flip));
      flip = 0 - bit;
      to[c] = uint8_t(bit);
    };
    if (column.empty())
      in_turn(columns_, [&](int lane, uint64_t c) __attribute__((always_inline)) { step(lane, c, 0); }, turns);
    else
      in_turn(columns_, [&](int lane, uint64_t c) __attribute__((always_inline)) { step(lane, c, column[c]); }, turns);
  }
  shared = in;
}

}  // namespace crest::codec
