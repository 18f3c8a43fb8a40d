#pragma once
// The payload of one tensor: which elements are kept, and their values. docs/format.md describes the bytes.
#include <cstdint>
#include <vector>

namespace crest::codec {

struct Format {
  enum Kind { boolean, integer, floating };  // a boolean is one byte, 0 or 1
  Kind kind;
  int bytes;  // of an element: 1, 2, 4 or 8
};

// n > 0 elements in native (little-endian) order, which need not be aligned. `columns` divides n: where rows are
// expected to resemble one another. The same input gives the same bytes on every machine.
std::vector<uint8_t> encode_tensor(const uint8_t* data, uint64_t n, Format format, uint64_t columns);

// Writes n elements to `out`. Anything may stand in the payload: std::invalid_argument if it is not one of
// n elements, and then `out` holds anything. Needs memory for the elements once more and at most ten bytes for each.
void decode_tensor(const uint8_t* payload, uint64_t size, uint8_t* out, uint64_t n, Format format);

}  // namespace crest::codec
