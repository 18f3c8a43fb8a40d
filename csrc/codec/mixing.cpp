#include "mixing.h"

namespace crest::codec {
namespace {

// 65536 / (1 + exp(-x)) for x from -12 to 12 in halves.
constexpr std::array<int, 49> kLogistic = {0,     1,     1,     2,     3,     5,     8,     13,    22,    36,
                                           60,    98,    162,   267,   439,   720,   1179,  1921,  3108,  4971,
                                           7812,  11955, 17625, 24743, 32768, 40793, 47911, 53581, 57724, 60565,
                                           62428, 63615, 64357, 64816, 65097, 65269, 65374, 65438, 65476, 65500,
                                           65514, 65523, 65528, 65531, 65533, 65534, 65535, 65535, 65536};

}  // namespace

MixingTables::MixingTables() {
  for (int at = 0; at < 2 * kReach; ++at) {
    const int i = at / 128, part = at % 128;
    const int p = (kLogistic[i] * (128 - part) + kLogistic[i + 1] * part) / 128;
    squash[at] = uint16_t(std::clamp(p, 16, kCertain - 17));
  }
  int at = 0;
  for (int p = 0; p < 4096; ++p) {
    while (at < 2 * kReach - 1 && squash[at] < 16 * p + 8) ++at;
    stretch[p] = int16_t(at - kReach);
  }
  for (int seen = 0; seen < int(slot_rate.size()); ++seen) slot_rate[seen] = uint16_t(65536 / (2 * seen + 3));
  for (int seen = 0; seen < int(mixer_rate.size()); ++seen) mixer_rate[seen] = uint16_t(32 + 1000 / (1 + seen));
}

const MixingTables kMixing;

}  // namespace crest::codec
