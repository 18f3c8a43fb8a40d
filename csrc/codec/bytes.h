#pragma once
// The two ends of a payload: fields and raw bits are read forwards from its start, words of the entropy coder backwards
// from its end, and both have to meet. Whatever a payload says, nothing is read that lies outside of it.
#include <cstdint>
#include <cstring>
#include <sstream>
#include <stdexcept>
#include <vector>

namespace crest::codec {

using Bytes = std::vector<uint8_t>;

template <class... Args>
[[noreturn, gnu::cold, gnu::noinline]] void refuse(const Args&... args) {
  std::ostringstream text;
  (text << ... << args);
  throw std::invalid_argument(text.str());
}

// All but the last `bits` bits cleared; bits is 0 to 64.
inline uint64_t low(uint64_t value, int bits) { return bits == 64 ? value : value & ((uint64_t{1} << bits) - 1); }

class Source {
 public:
  Source(const uint8_t* data, size_t size) : at_(data), end_(data + size) {}

  size_t left() const { return size_t(end_ - at_); }

  uint8_t byte(const char* what) {
    if (at_ == end_) refuse(what, " must lie in the payload: it is cut off");
    return *at_++;
  }

  // Little-endian, 1 to 8 bytes.
  uint64_t word(int bytes, const char* what) {
    uint64_t value = 0;
    for (int i = 0; i < bytes; ++i) value |= uint64_t{byte(what)} << 8 * i;
    return value;
  }

  // LEB128 in its shortest form.
  uint64_t varint(const char* what, uint64_t limit) {
    uint64_t value = 0;
    for (int i = 0; i < 9; ++i) {
      const uint8_t b = byte(what);
      value |= uint64_t(b & 0x7f) << 7 * i;
      if (b >= 0x80) continue;
      if (i && !b) refuse(what, " must be a varint of the fewest bytes");
      if (value > limit) refuse(what, " must be at most ", limit, ", got ", value);
      return value;
    }
    refuse(what, " must be a varint of at most 9 bytes");
  }

  // The next `count` bits, at most 56; the first is the lowest of its byte.
  [[gnu::always_inline]] uint64_t bits(int count) {
    if (end_ - at_ < 8) return last_bits(count);
    uint64_t window = 0;
    for (int i = 0; i < 8; ++i) window |= uint64_t{at_[i]} << 8 * i;  // one load
    return skip(window, count);
  }

  // At most 64.
  uint64_t many_bits(int count) {
    if (count <= 32) return bits(count);
    const uint64_t first = bits(32);
    return first | bits(count - 32) << 32;
  }

  // Two bytes from the end; the last word is read first.
  uint32_t pop() {
    if (end_ - at_ < 2 + (used_ != 0)) refuse("words of the coder must lie in the payload: it is cut off");
    end_ -= 2;
    return uint32_t{end_[0]} | uint32_t{end_[1]} << 8;
  }

  // To be called once, after the last read.
  void finish() {
    if (used_ && *at_++ >> used_) refuse("bits after the last raw bit must be 0");
    if (at_ != end_) refuse("payload must end with its values, got ", left(), " more bytes");
  }

 private:
  [[gnu::always_inline]] uint64_t skip(uint64_t window, int count) {
    const uint64_t value = window >> used_ & ((uint64_t{1} << count) - 1);
    used_ += count;
    at_ += used_ / 8;
    used_ %= 8;
    return value;
  }

  [[gnu::noinline]] uint64_t last_bits(int count) {
    if ((used_ + count + 7) / 8 > end_ - at_) refuse("raw bits must lie in the payload: it is cut off");
    uint64_t window = 0;
    for (int i = 0; i < end_ - at_; ++i) window |= uint64_t{at_[i]} << 8 * i;
    return skip(window, count);
  }

  const uint8_t *at_, *end_;
  int used_ = 0;  // bits of *at_ that are read
};

class Sink {
 public:
  Bytes bytes;

  void byte(uint64_t value) { bytes.push_back(uint8_t(value)); }

  void word(uint64_t value, int count) {
    uint8_t little[8];
    for (int i = 0; i < 8; ++i) little[i] = uint8_t(value >> 8 * i);  // one store
    bytes.insert(bytes.end(), little, little + count);
  }

  void varint(uint64_t value) {
    for (; value > 0x7f; value >>= 7) byte(value | 0x80);
    byte(value);
  }

  // At most 64; the others are 0.
  void bits(uint64_t value, int count) {
    if (count > 32) {
      bits(low(value, 32), 32);
      return bits(value >> 32, count - 32);
    }
    window_ |= value << used_;
    used_ += count;
    if (used_ < 32) return;
    word(window_, 4);
    window_ >>= 32;
    used_ -= 32;
  }

  void finish() {
    for (; used_ > 0; used_ -= 8, window_ >>= 8) byte(window_);
  }

 private:
  uint64_t window_ = 0;
  int used_ = 0;
};

}  // namespace crest::codec
