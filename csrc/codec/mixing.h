#pragma once
// Logistic mixing: several models guess a bit, and a small neural network that learns as it goes weighs their guesses.
// All in integers, so that every machine makes the same guesses. docs/format.md has the formulas.
// Source: Mahoney, "Adaptive weighing of context models for lossless data compression", 2005, CS-2005-16.
#include <array>
#include <cstdint>

#include "interval.h"

namespace crest::codec {

constexpr int kReach = 3072;  // logits lie in [-kReach, kReach), in 1/256

// How likely a bit is a 1, as seen from one context.
struct Slot {
  uint16_t p = kCertain / 2;
  uint16_t seen = 0;

  void learn(bool bit);
};

struct MixingTables {
  MixingTables();
  std::array<uint16_t, 2 * kReach> squash;  // probability by logit + kReach
  std::array<int16_t, 4096> stretch;        // logit by the upper 12 bits of a probability
  std::array<uint16_t, 256> slot_rate;      // by what a slot has seen
  std::array<uint16_t, 1024> mixer_rate;    // by a 16th of what a mixer has seen
};
extern const MixingTables kMixing;

inline int logit(const Slot& slot) { return kMixing.stretch[slot.p >> 4]; }

inline void Slot::learn(bool bit) {
  p = uint16_t(p + (((bit ? kCertain - 1 : 0) - p) * kMixing.slot_rate[seen] >> 15));
  seen = uint16_t(seen + (seen < kMixing.slot_rate.size() - 1));
}

template <int n>
class Mixer {
 public:
  Mixer() { weights_.fill(kStart); }

  // Codes a bit by what n slots say of it, and lets them and the weights learn. A decoder ignores `bit`.
  template <class Coder>
  [[gnu::always_inline]] bool code(Coder& coder, bool bit, const std::array<Slot*, n>& slots) {
    std::array<int, n> logits;
    int64_t sum = 0;
    for (int i = 0; i < n; ++i) {
      logits[i] = logit(*slots[i]);
      sum += int64_t{weights_[i]} * logits[i];
    }
    const int p = kMixing.squash[size_t(std::clamp<int64_t>(sum >> 16, -kReach, kReach - 1) + kReach)];
    bit = coder.code(uint32_t(p), bit);
    const int step = ((bit ? kCertain : 0) - p) * kMixing.mixer_rate[seen_ / 16] >> 7;
    seen_ += seen_ < 16 * kMixing.mixer_rate.size() - 1;
    for (int i = 0; i < n; ++i) {
      weights_[i] = int32_t(uint32_t(weights_[i]) + uint32_t((logits[i] * step + (1 << 14)) >> 15));  // modulo 2^32
      slots[i]->learn(bit);
    }
    return bit;
  }

 private:
  static constexpr int kStart = 18432;  // in 1/65536
  std::array<int32_t, n> weights_;
  uint32_t seen_ = 0;
};

}  // namespace crest::codec
