#include "tensor.h"

#include "plane.h"
#include "values.h"

namespace crest::codec {
namespace {

// The first byte of a payload.
constexpr uint8_t kMask = 1;       // some elements are not kept; a bool always has it
constexpr uint8_t kZeroSigns = 2;  // some of these are -0.0
constexpr uint8_t kValues = 4;     // some are kept and are not just 1
constexpr uint8_t kFourLanes = 8;

constexpr uint64_t kManyElements = 1 << 16;  // from here on, three states more cost less than they gain

template <class Word>
Word load(const uint8_t* data, uint64_t i) {
  Word w;
  std::memcpy(&w, data + i * sizeof(Word), sizeof(Word));
  return w;
}

// The bits that make an element differ from zero, and the sign of zero.
template <class Word>
constexpr Word sign(Format format) {
  return format.kind == Format::floating ? Word(Word{1} << (8 * sizeof(Word) - 1)) : Word{0};
}

template <class Word>
Bytes encode(const uint8_t* data, uint64_t n, Format format, uint64_t columns) {
  const Word minus = sign<Word>(format);
  Bits mask(n, Plane::margin(columns));
  std::vector<Word> kept(n);
  uint64_t negative = 0, count = 0;
  for (uint64_t i = 0; i < n; ++i) {  // without a branch: what is kept can hardly be predicted
    const Word w = load<Word>(data, i);
    const bool keep = Word(w & Word(~minus)) != 0;
    mask.data()[i] = keep;
    kept[count] = w;
    count += keep;
    negative += !keep & (w != 0);
  }
  kept.resize(count);
  const bool boolean = format.kind == Format::boolean, masked = boolean || count < n, valued = !boolean && count;
  const int lanes = n < kManyElements ? 1 : kMaxLanes;
  Sink out;
  out.byte((masked ? kMask : 0) | (negative ? kZeroSigns : 0) | (valued ? kValues : 0) | (lanes > 1 ? kFourLanes : 0));
  Encoder coder;
  // What is decoded last is put first.
  Sink values;
  if (valued) {
    const auto model = Values<Word>::fit(kept, format.kind == Format::floating);
    model.write(values);
    model.put(coder, values, lanes, kept);
  }
  std::vector<Word>().swap(kept);  // several threads encode at a time: what is not needed is given back
  Sink signs;
  if (negative) {
    const uint64_t zeros = n - count;
    Bits bits(zeros, Plane::margin(0));
    uint64_t at = 0;
    for (uint64_t i = 0; i < n; ++i)
      if (!mask.data()[i]) bits.data()[at++] = load<Word>(data, i) != 0;
    const Plane plane = Plane::fit(bits, zeros);
    plane.write(signs);
    plane.put(coder, lanes, bits);
  }
  if (masked) {
    const Plane plane = Plane::fit(mask, columns);
    plane.write(out);
    plane.put(coder, lanes, mask);
  }
  out.bytes.reserve(out.bytes.size() + signs.bytes.size() + values.bytes.size() + coder.most_bytes());
  for (const Sink* part : {&signs, &values}) out.bytes.insert(out.bytes.end(), part->bytes.begin(), part->bytes.end());
  coder.finish(lanes, out.bytes);
  return out.bytes;
}

// Spreads kept words, and one more that is never written, over the places of the mask. Without a branch, as above.
template <class Word>
void scatter(const Bits& mask, const std::vector<Word>& kept, uint8_t* out) {
  const Word* next = kept.data();
  const uint8_t* bits = mask.data();
  for (uint64_t i = 0; i < mask.size; ++i) {
    const Word w = Word(*next & Word(0 - Word{bits[i]}));
    std::memcpy(out + i * sizeof(Word), &w, sizeof(Word));
    next += bits[i];
  }
}

template <class Word>
void decode(Source in, uint8_t* out, uint64_t n, Format format) {
  const Word minus = sign<Word>(format);
  const bool boolean = format.kind == Format::boolean;
  const uint8_t head = in.byte("first byte");
  if (head >= 16) refuse("first byte must be less than 16, got ", +head);
  const int lanes = head & kFourLanes ? kMaxLanes : 1;
  Decoder coder(in, lanes);
  if (boolean && (head & ~kFourLanes) != kMask) refuse("a bool must have a mask alone, got ", +head);
  if (head & kZeroSigns && !(minus && head & kMask)) refuse("signs of zeros need a mask of floats, got ", +head);
  if (!(head & (kMask | kValues))) refuse("first byte must announce a mask or values, got ", +head);
  if (!(head & kMask)) {
    Values<Word>::read(coder.in).take(coder, lanes, out, n);
    coder.finish();
    return;
  }
  const Bits mask = Plane::read(coder.in, n, "mask").take(coder, lanes);
  uint64_t count = 0;
  for (uint64_t i = 0; i < n; ++i) count += mask.data()[i];
  if (boolean) {
    std::memcpy(out, mask.data(), n);
    coder.finish();
    return;
  }
  const uint64_t zeros = n - count;
  if (zeros == 0) refuse("mask must have a 0");
  const bool valued = head & kValues;
  if (valued != (count > 0)) refuse("values must be there if the mask keeps any, got ", count, " kept");
  const bool signs = head & kZeroSigns;
  const Bits negative = signs ? Plane::read(coder.in, zeros, "signs").take(coder, lanes) : Bits(0, 0);
  std::vector<Word> kept(count + 1);
  if (valued) Values<Word>::read(coder.in).take(coder, lanes, reinterpret_cast<uint8_t*>(kept.data()), count);
  coder.finish();
  for (uint64_t i = 0; i < count; ++i)
    if (Word(kept[i] & Word(~minus)) == 0) refuse("kept values must not be zero");
  scatter(mask, kept, out);
  const uint8_t* bit = negative.data();
  for (uint64_t i = 0; signs && i < n; ++i)
    if (!mask.data()[i] && *bit++) std::memcpy(out + i * sizeof(Word), &minus, sizeof(Word));
}

}  // namespace

Bytes encode_tensor(const uint8_t* data, uint64_t n, Format format, uint64_t columns) {
  switch (format.bytes) {
    case 1: return encode<uint8_t>(data, n, format, columns);
    case 2: return encode<uint16_t>(data, n, format, columns);
    case 4: return encode<uint32_t>(data, n, format, columns);
    default: return encode<uint64_t>(data, n, format, columns);
  }
}

void decode_tensor(const uint8_t* payload, uint64_t size, uint8_t* out, uint64_t n, Format format) {
  const Source in(payload, size);
  switch (format.bytes) {
    case 1: return decode<uint8_t>(in, out, n, format);
    case 2: return decode<uint16_t>(in, out, n, format);
    case 4: return decode<uint32_t>(in, out, n, format);
    default: return decode<uint64_t>(in, out, n, format);
  }
}

}  // namespace crest::codec
