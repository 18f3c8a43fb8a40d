#pragma once
// Memory that a call needs for itself. Up to 4 MiB are kept for the thread's next call: new pages come from the system
// zeroed, one fault each, and cold, which takes as long as a small layer's whole product.
#include <cstdint>
#include <memory>
#include <new>

namespace crest {

class Scratch {
 public:
  explicit Scratch(int64_t numbers) : numbers_(numbers) {
    if (kept().numbers < numbers) kept() = Block(numbers);
  }
  ~Scratch() {
    if (numbers_ > most_kept) kept() = Block(0);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  float* data() { return kept().memory.get(); }

 private:
  static constexpr int64_t most_kept = 1 << 20;
  static constexpr std::align_val_t line{64};
  struct Free {
    void operator()(float* p) const { ::operator delete[](p, line); }
  };
  struct Block {
    explicit Block(int64_t size)
        : memory(size ? new (line) float[static_cast<size_t>(size)] : nullptr), numbers(size) {}
    std::unique_ptr<float[], Free> memory;
    int64_t numbers;
  };
  static Block& kept() {
    thread_local Block block(0);
    return block;
  }

  int64_t numbers_;
};

}  // namespace crest
