#pragma once
// Integers of several matrices, coded bit by bit by models that learn from what came before and are mixed: the fewest
// bytes, at a tenth of the speed of tensor.h. docs/format.md describes the bytes.
#include "bytes.h"

namespace crest::codec {

constexpr int kMaxInteger = 32767;  // of either sign

struct Matrix {
  uint64_t rows, columns;
  uint64_t group = 1;  // columns that belong together, as the taps of one filter's channel; divides `columns`
};

// Row-major integers of the matrices, one after another. The same input gives the same bytes on every machine.
Bytes encode_mixed(const int16_t* data, const std::vector<Matrix>& matrices);

// Writes the n integers of so many matrices and gives these. Anything may stand in the payload: std::invalid_argument
// if it is not one, and then `out` holds anything. Needs memory for at most 40 bytes an integer.
std::vector<Matrix> decode_mixed(const uint8_t* payload, uint64_t size, int16_t* out, uint64_t n, uint64_t matrices);

}  // namespace crest::codec
