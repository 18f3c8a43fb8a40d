#pragma once
// Memory that a call needs for itself. Up to 4 MiB are kept for the thread's next calls: new pages come from the system
// zeroed, one fault each, and cold, which takes as long as a small layer's whole product.
#include <cstdint>
#include <memory>
#include <new>
#include <vector>

namespace crest {

class Scratch {
 public:
  explicit Scratch(int64_t numbers) : block_(take(numbers)) {}
  ~Scratch() {
    if (block_.numbers > most_kept) return;
    auto& blocks = kept();
    blocks.push_back(std::move(block_));
    for (int64_t all = sum(blocks); all > most_kept; blocks.erase(blocks.begin())) all -= blocks.front().numbers;
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  float* data() { return block_.memory.get(); }

 private:
  static constexpr int64_t most_kept = 1 << 20;
  static constexpr std::align_val_t line{64};
  struct Free {
    void operator()(float* p) const { ::operator delete[](p, line); }
  };
  struct Block {
    std::unique_ptr<float[], Free> memory;
    int64_t numbers;
  };
  using Blocks = std::vector<Block>;

  // The smallest of those kept that is large enough, or a new one.
  static Block take(int64_t numbers) {
    auto& blocks = kept();
    auto best = blocks.end();
    for (auto block = blocks.begin(); block != blocks.end(); ++block)
      if (block->numbers >= numbers && (best == blocks.end() || block->numbers < best->numbers)) best = block;
    if (best == blocks.end()) return {decltype(Block::memory)(new (line) float[static_cast<size_t>(numbers)]), numbers};
    Block found = std::move(*best);
    blocks.erase(best);
    return found;
  }
  static int64_t sum(const Blocks& blocks) {
    int64_t all = 0;
    for (const Block& block : blocks) all += block.numbers;
    return all;
  }
  static Blocks& kept() {
    thread_local Blocks blocks;
    return blocks;
  }

  Block block_;
};

}  // namespace crest
