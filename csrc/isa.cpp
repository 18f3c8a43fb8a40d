#include "isa.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>
#include <string>

namespace crest {
namespace {

Isa find(const std::string& wanted) {
  std::string available;
  for (Isa isa : isas) {
    if (!supported(isa)) continue;
    if (wanted == name(isa)) return isa;
    available += (available.empty() ? "" : ", ") + std::string(name(isa));
  }
  throw std::invalid_argument("CREST_ISA: must be one of " + available + " on this CPU, got " + wanted);
}

Isa detect() {
  if (const char* forced = std::getenv("CREST_ISA")) return find(forced);
  for (Isa isa : isas)
    if (supported(isa)) return isa;
  throw std::runtime_error("crest_ext has no kernels for this CPU");
}

std::atomic<Isa>& active() {
  static std::atomic<Isa> isa{detect()};
  return isa;
}

}  // namespace

const char* name(Isa isa) {
#define CREST_ISA_NAME(name) #name,
  static const char* const names[] = {CREST_FOR_EACH_ISA(CREST_ISA_NAME)};
#undef CREST_ISA_NAME
  return names[static_cast<int>(isa)];
}

bool supported(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::avx512)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (isa == Isa::avx2)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  return isa == Isa::baseline;
#else
  return isa == Isa::neon;
#endif
}

Isa active_isa() { return active().load(std::memory_order_relaxed); }

void set_active_isa(const char* wanted) { active() = find(wanted); }

}  // namespace crest
