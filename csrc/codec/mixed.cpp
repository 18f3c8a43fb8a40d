#include "mixed.h"

#include <cstdlib>

#include "mixing.h"
#include "plane.h"

namespace crest::codec {
namespace {

constexpr int kUnary = 15;     // magnitudes below are counted up bit by bit; the rest of others is an Elias gamma code
constexpr int kLengths = 15;   // of these
constexpr int kLevels = 24;    // steps of a logit in one half
constexpr uint64_t kNear = 2;  // the least distance of the lags: closer ones are looked at anyway

struct Layout : Matrix {
  uint64_t lag = kNear;  // the distance at which an element tells most of another, beside 1 and columns

  uint64_t second() const {  // the row above of a filter's channel, or twice the lag
    uint64_t side = 1;
    while ((side + 1) * (side + 1) <= group) ++side;
    return group > 1 ? std::max(side, kNear) : 2 * lag;
  }
  // How far contexts look back.
  uint64_t margin() const { return 2 * std::max(lag, columns) + 2; }
  bool operator==(const Layout& o) const {
    return rows == o.rows && columns == o.columns && group == o.group && lag == o.lag;
  }
};

// An integer as contexts see it: bit 0 whether it is not 0, bit 1 whether it is beyond 1 in size, bit 2 its sign.
uint8_t seen_as(int v) { return uint8_t((v != 0) | (std::abs(v) > 1) << 1 | (v < 0) << 2); }
uint32_t kept(uint8_t s) { return s & 1; }
int size(uint8_t s) { return (s & 1) + (s >> 1 & 1); }
int sign(uint8_t s) { return (s & 1) + (s >> 2); }

int bit_length(uint64_t value) { return value ? 64 - __builtin_clzll(value) : 0; }

// 0, 1, then two steps an octave.
int half_octave(int value) {
  const int length = bit_length(uint64_t(value));
  return value < 2 ? value : 2 * length - 2 + (value >> (length - 2) & 1);
}

int level(const Slot& slot) { return std::clamp((logit(slot) + 2304) >> 7, 0, kLevels - 1); }

// What integers look like, learned from one matrix after another.
template <class Coder>
class Model {
 public:
  explicit Model(Coder& coder) : coder_(coder) {}

  // v: rows x columns, written if the coder decodes, and margin() zeros before them.
  void code(int16_t* v, const Layout& m);

 private:
  struct Column {
    Slot kept;
    std::array<Slot, 4> larger;
  };
  int magnitude(int size, bool negative, int around, int sum, Column& column);
  int tail(int size);

  Coder& coder_;
  std::array<Mixer<5>, 8> keep_;
  std::array<Slot, 256> near_;
  std::array<Slot, 81> sizes_;
  std::array<Slot, kLevels * kLevels> densities_;
  std::array<Mixer<4>, 2> sign_;
  std::array<Slot, 81> before_, lagging_, above_;
  std::array<Slot, 9> sum_;
  std::array<Mixer<5>, kUnary> larger_;
  std::array<std::array<Slot, kUnary>, 27> around_;
  std::array<std::array<Slot, kUnary>, 16> weighed_;
  std::array<Slot, 2 * kUnary> counts_;  // of this matrix, by sign
  std::array<Slot, 4> row_larger_;       // of this row
  std::array<Slot, kLengths> lengths_;
};

template <class Coder>
void Model<Coder>::code(int16_t* v, const Layout& m) {
  const int64_t lag = int64_t(m.lag), second = int64_t(m.second()), row = int64_t(m.columns);
  const int64_t right = std::max<int64_t>(row - 1, 1), margin = int64_t(m.margin());
  const bool grouped = m.group > 1;
  Bytes memory(uint64_t(margin) + m.rows * m.columns);
  uint8_t* s = memory.data() + margin;
  std::vector<Column> columns(m.columns);
  std::vector<Slot> groups(m.columns / m.group);
  counts_.fill({});
  uint32_t left = 0, lagged = 0;  // which of the elements before, and about the lag before, were kept
  for (uint64_t r = 0; r < m.rows; ++r) {
    Slot in_row;
    row_larger_.fill({});
    for (uint64_t c = 0; c < m.columns; ++c, ++v, ++s) {
      Column& column = columns[c];
      left = left << 1 | kept(s[-1]);
      lagged = lagged << 1 | kept(s[1 - lag]);
      const uint32_t near = (left & 7) | (lagged & 7) << 3 | kept(s[-row]) << 6 | kept(s[-2 * lag]) << 7;
      const int around = size(s[-1]) + 3 * size(s[-lag]) + 9 * size(s[-row]);
      Mixer<5>& keep = keep_[(left & 1) | (lagged & 2) | uint32_t{grouped} << 2];
      Slot& density = densities_[level(in_row) * kLevels + level(column.kept)];
      const bool kept =
          keep.code(coder_, *v != 0,
                    {&in_row, &near_[near], &sizes_[around + 27 * size(s[-2 * lag])], &density, &groups[c / m.group]});
      column.kept.learn(kept);
      if (!kept) {
        *v = 0;
        continue;
      }
      const int lean = 2 * (v[-1] + v[-lag] + v[-second]) + v[-row] + v[-lag - 1] + v[1 - lag];
      const int leaning = std::min(bit_length(uint64_t(std::abs(lean))), 4) * (lean < 0 ? -1 : 1) + 4;
      const int lagging = sign(s[-1]) + 3 * sign(s[-lag]);
      const bool negative = sign_[grouped].code(
          coder_, *v < 0,
          {&before_[lagging + 9 * sign(s[-row]) + 27 * sign(s[-2])],
           &lagging_[lagging + 9 * sign(s[-lag - 1]) + 27 * sign(s[1 - lag])], &sum_[leaning],
           &above_[sign(s[-second]) + 3 * sign(s[-1]) + 9 * sign(s[-second - 1]) + 27 * sign(s[1 - second])]});
      const auto far = [&](int64_t distance) { return std::abs(v[-distance]); };
      const int weighed = 4 * (far(1) + far(lag)) + 3 * far(row) + 2 * far(second) + far(2) + far(lag + 1) +
                          far(lag - 1) + far(2 * lag) + far(row + 1) + far(right) + far(2 * row);
      const int size = magnitude(std::abs(*v), negative, around, std::min(half_octave(weighed), 15), column);
      *v = int16_t(negative ? -size : size);
      *s = seen_as(*v);
    }
  }
}

template <class Coder>
int Model<Coder>::magnitude(int size, bool negative, int around, int sum, Column& column) {
  for (int i = 1; i < kUnary; ++i) {
    const int at = i - 1, few = std::min(at, 3);
    const bool larger = larger_[at].code(coder_, size > i,
                                         {&counts_[at + kUnary * negative], &around_[around][at], &row_larger_[few],
                                          &column.larger[few], &weighed_[sum][at]});
    if (!larger) return i;
  }
  return kUnary - 1 + tail(size - kUnary + 1);
}

// At least 1, in Elias's gamma code: the number of bits after the first, in unary, and these bits.
template <class Coder>
int Model<Coder>::tail(int size) {
  const auto bit = [&](Slot& slot, bool value) {
    value = coder_.code(std::clamp<uint32_t>(slot.p, 16, kCertain - 17), value);
    slot.learn(value);
    return value;
  };
  int length = 0;
  while (bit(lengths_[length], size >> length > 1))
    if (++length == kLengths) refuse("integers must be at most ", kMaxInteger);
  int value = 1;
  while (length-- > 0) value = 2 * value + coder_.code(kCertain / 2, size >> length & 1);
  if (value + kUnary - 1 > kMaxInteger) refuse("integers must be at most ", kMaxInteger);
  return value;
}

}  // namespace

Bytes encode_mixed(const int16_t* data, const std::vector<Matrix>& matrices) {
  Sink out;
  BitEncoder coder;
  Model<BitEncoder> model(coder);
  Layout last{};
  for (const Matrix& matrix : matrices) {
    Layout m;
    static_cast<Matrix&>(m) = matrix;
    const uint64_t n = m.rows * m.columns;
    Bits bits(n, Plane::margin(m.columns));
    for (uint64_t i = 0; i < n; ++i) bits.data()[i] = data[i] != 0;
    m.lag = std::max(m.group > 1 ? m.group : find_lag(bits, m.columns), kNear);
    if (m == last) {
      out.varint(0);
    } else {
      out.varint(m.columns);
      out.varint(m.rows);
      out.varint(m.group);
      if (m.group == 1) out.varint(m.lag);
    }
    std::vector<int16_t> v(m.margin() + n);
    std::copy(data, data + n, v.begin() + int64_t(m.margin()));
    model.code(v.data() + m.margin(), m);
    data += n;
    last = m;
  }
  coder.finish();
  out.bytes.insert(out.bytes.end(), coder.bytes.begin(), coder.bytes.end());
  return out.bytes;
}

std::vector<Matrix> decode_mixed(const uint8_t* payload, uint64_t size, int16_t* out, uint64_t n, uint64_t matrices) {
  Source in(payload, size);
  std::vector<Layout> layouts;
  uint64_t left = n;
  for (uint64_t i = 0; i < matrices; ++i) {
    Layout m;
    m.columns = in.varint("columns", left);
    if (m.columns) {
      m.rows = in.varint("rows", left / m.columns);
      m.group = in.varint("group", m.columns);
      if (m.rows == 0) refuse("rows must be at least 1, got 0");
      if (m.group == 0 || m.columns % m.group) refuse("group must divide ", m.columns, ", got ", m.group);
      m.lag = m.group > 1 ? m.group : in.varint("lag", std::max(m.rows * m.columns, kNear));
      if (m.lag < kNear) refuse("lag must be at least ", kNear, ", got ", m.lag);
    } else {
      if (layouts.empty()) refuse("columns of the first matrix must be at least 1, got 0");
      m = layouts.back();
      if (m.rows * m.columns > left) refuse("matrices must have ", n, " integers");
    }
    left -= m.rows * m.columns;
    layouts.push_back(m);
  }
  if (left) refuse("matrices must have ", n, " integers, got ", n - left);
  BitDecoder coder(in);
  Model<BitDecoder> model(coder);
  for (const Layout& m : layouts) {
    const uint64_t count = m.rows * m.columns;
    std::vector<int16_t> v(m.margin() + count);
    model.code(v.data() + m.margin(), m);
    std::copy(v.end() - int64_t(count), v.end(), out);
    out += count;
  }
  coder.finish();
  return {layouts.begin(), layouts.end()};
}

}  // namespace crest::codec
