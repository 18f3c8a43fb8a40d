#pragma once
// Working memory of a kernel: uninitialised, at the start of a cache line.
#include <cstdint>
#include <memory>

namespace crest {

class Work {
 public:
  explicit Work(int64_t doubles) : memory_(new double[static_cast<size_t>(doubles) + line]) {}
  double* data() const {
    const uintptr_t at = reinterpret_cast<uintptr_t>(memory_.get()), bytes = line * sizeof(double);
    return reinterpret_cast<double*>((at + bytes - 1) / bytes * bytes);
  }

 private:
  static constexpr size_t line = 8;
  std::unique_ptr<double[]> memory_;
};

}  // namespace crest
