#pragma once
// The element types that kernels know, without torch.
#include <cstdint>

namespace crest {

enum class Dtype { float32, float64, bfloat16, float16 };

struct BFloat16 {
  uint16_t bits;
};

struct Half {
  uint16_t bits;
};

}  // namespace crest
