#pragma once
// The instruction sets a CPU kernel is compiled for, and the one in use.

#if defined(__x86_64__)
#define CREST_FOR_EACH_ISA(f) f(avx512) f(avx2) f(baseline)  // best first
#elif defined(__aarch64__)
#define CREST_FOR_EACH_ISA(f) f(neon)
#else
#error "crest_ext has CPU kernels for x86-64 and aarch64"
#endif

namespace crest {

#define CREST_ISA_NAME(isa) isa,
enum class Isa { CREST_FOR_EACH_ISA(CREST_ISA_NAME) };
#undef CREST_ISA_NAME

constexpr Isa isas[] = {
#define CREST_ISA_VALUE(isa) Isa::isa,
    CREST_FOR_EACH_ISA(CREST_ISA_VALUE)
#undef CREST_ISA_VALUE
};

const char* name(Isa);
bool supported(Isa);
Isa active_isa();                  // The best one this CPU has, or CREST_ISA from the environment.
void set_active_isa(const char*);  // Throws std::invalid_argument if this CPU lacks it or it does not exist.

// A kernel in each instruction set's namespace, in the order of `isas`.
template <class Kernel>
struct Kernels {
  Kernel* table[sizeof(isas) / sizeof(isas[0])];
  Kernel* active() const { return table[static_cast<int>(active_isa())]; }
};

}  // namespace crest

// Declares `void kernel(args)` in each instruction set's namespace. csrc/cpu/ compiles one namespace at a time.
#if defined(CREST_ISA)
#define CREST_DECLARE_KERNEL(kernel, ...) \
  namespace CREST_ISA {                   \
  void kernel(__VA_ARGS__);               \
  }
#elif defined(__x86_64__)
#define CREST_DECLARE_KERNEL(kernel, ...) \
  namespace avx512 {                      \
  void kernel(__VA_ARGS__);               \
  }                                       \
  namespace avx2 {                        \
  void kernel(__VA_ARGS__);               \
  }                                       \
  namespace baseline {                    \
  void kernel(__VA_ARGS__);               \
  }
#define CREST_KERNEL(kernel) \
  (::crest::Kernels<decltype(avx512::kernel)>{{&avx512::kernel, &avx2::kernel, &baseline::kernel}}.active())
#else
#define CREST_DECLARE_KERNEL(kernel, ...) \
  namespace neon {                        \
  void kernel(__VA_ARGS__);               \
  }
#define CREST_KERNEL(kernel) (::crest::Kernels<decltype(neon::kernel)>{{&neon::kernel}}.active())
#endif
