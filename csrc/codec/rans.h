#pragma once
// Range asymmetric numeral systems: an interval of `freq` of the 4096 slots costs log2(4096 / freq) bits. What is put
// last comes out first. Up to four states take turns, so that one's arithmetic overlaps the next one's.
// Source: Duda, "Asymmetric numeral systems", 2013, arXiv:1311.2540.
#include <algorithm>
#include <array>
#include <utility>

#include "bytes.h"

namespace crest::codec {

constexpr int kSlotBits = 12;
constexpr uint32_t kSlots = 1 << kSlotBits;
constexpr uint32_t kLow = 1 << 16;  // states stay in [kLow, 2^32)
constexpr int kMaxLanes = 4;

class Encoder {
 public:
  Encoder() { state_.fill(kLow); }

  // Has to come before so many symbols are put.
  void reserve(uint64_t symbols) {
    if (words_.size() < count_ + symbols) words_.resize(count_ + symbols);
  }

  void put(int lane, uint32_t freq, uint32_t start) { count_ += enter(state_[lane], words_[count_], freq, start); }

  // Bits n - 1 to 0 of a row, the lanes in turn; freq(i) slots are those of a 1. States are kept in registers.
  template <int lanes, class Freq>
  void put_bits(uint64_t n, const uint8_t* bits, Freq freq) {
    std::array<uint32_t, lanes> state;
    std::copy_n(state_.begin(), lanes, state.begin());
    uint16_t* to = words_.data() + count_;
    const auto step = [&](int lane, uint64_t i) __attribute__((always_inline)) {
      const uint32_t one = freq(i), other = kSlots - one, all = 0 - uint32_t{bits[i]};
      const uint32_t size = other ^ ((one ^ other) & all), start = one & ~all;
      to += enter(state[lane], *to, size, start);
    };
    for (; n % lanes; --n) step(int((n - 1) % lanes), n - 1);
    for (; n; n -= lanes) backwards(step, n, std::make_integer_sequence<int, lanes>());
    std::copy_n(state.begin(), lanes, state_.begin());
    count_ = uint64_t(to - words_.data());
  }

  // What finish adds, at most.
  uint64_t most_bytes() const { return 2 * (count_ + 2 * kMaxLanes); }

  void finish(int lanes, Bytes& out) {
    reserve(2 * uint64_t(lanes));
    for (int lane = lanes; lane-- > 0;) {
      words_[count_++] = uint16_t(state_[lane]);
      words_[count_++] = uint16_t(state_[lane] >> 16);
    }
    const auto* bytes = reinterpret_cast<const uint8_t*>(words_.data());
    out.insert(out.end(), bytes, bytes + 2 * count_);
  }

 private:
  // Whether a word was due, which is then in `word`. No branch: it can hardly be predicted.
  [[gnu::always_inline]] static bool enter(uint32_t& x, uint16_t& word, uint32_t freq, uint32_t start) {
    word = uint16_t(x);
    const bool due = x >= uint64_t{freq} << (32 - kSlotBits);
    x >>= 16 * due;
    x = (x / freq << kSlotBits) + x % freq + start;
    return due;
  }

  template <class Step, int... k>
  [[gnu::always_inline]] static void backwards(Step step, uint64_t n, std::integer_sequence<int, k...>) {
    (step(int(sizeof...(k)) - 1 - k, n - 1 - k), ...);
  }

  std::array<uint32_t, kMaxLanes> state_;
  std::vector<uint16_t> words_;  // little-endian, as the machine
  uint64_t count_ = 0;           // of words
};

// step(lane, i) for i below n, the lanes in turn. Lanes are constants to the compiler: it keeps the states in
// registers.
template <class Step, int... lane>
[[gnu::always_inline]] inline void in_turn(uint64_t n, Step step, std::integer_sequence<int, lane...>) {
  uint64_t i = 0;
  for (; i + sizeof...(lane) <= n; i += sizeof...(lane)) (step(lane, i + lane), ...);
  ((i + lane < n ? step(lane, i + lane) : void()), ...);
}

// Loops copy it, so that its states are kept in registers, and assign it back.
class Decoder {
 public:
  Decoder(Source source, int lanes) : in(source) {
    state_.fill(kLow);
    for (int lane = 0; lane < lanes; ++lane) {
      const uint32_t high = in.pop();
      state_[lane] = high << 16 | in.pop();
      if (high == 0) refuse("states of the coder must be at least ", kLow, ", got ", state_[lane]);
    }
  }

  uint32_t slot(int lane) const { return state_[lane] & (kSlots - 1); }

  // Leaves an interval; `offset` is where in it the slot lies.
  void take(int lane, uint32_t freq, uint32_t offset) {
    uint32_t& x = state_[lane];
    x = freq * (x >> kSlotBits) + offset;
    if (x < kLow) x = x << 16 | in.pop();  // rare enough to be a branch, which costs the usual case nothing
  }

  [[gnu::always_inline]] uint32_t bit(int lane, uint32_t freq) {
    uint32_t& x = state_[lane];
    const uint32_t product = freq * (x >> kSlotBits), one = slot(lane) + product, zero = x - product - freq;
    const bool bit = slot(lane) < freq;
    x = bit ? one : zero;  // a conditional move: a branch would be mispredicted
    if (x < kLow) x = x << 16 | in.pop();
    return bit;
  }

  // Both ends have met and all that was put has come out.
  void finish() {
    for (uint32_t x : state_)
      if (x != kLow) refuse("states of the coder must end as ", kLow, ", got ", x);
    in.finish();
  }

  Source in;

 private:
  std::array<uint32_t, kMaxLanes> state_;
};

}  // namespace crest::codec
