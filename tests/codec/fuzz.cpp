// Feeds the decoder what nobody's encoder wrote. On its own: `fuzz SECONDS SEED` mutates payloads of random tensors,
// and `fuzz seeds FOLDER` writes such payloads. With clang: -fsanitize=fuzzer,address,undefined -DCREST_LIBFUZZER.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <stdexcept>

#include "codec/mixed.h"
#include "codec/tensor.h"

using crest::codec::Format;
using Bytes = std::vector<uint8_t>;

namespace {

struct Input {
  Format format;
  uint64_t n, columns;
};

// An input is its format, its number of elements less one (2 bytes), the columns, and the payload.
constexpr size_t kHead = 4;
constexpr uint8_t kMixed = 0x80;  // in the first byte: the payload is one of mixed.h, of columns % 8 matrices

Input parse(const uint8_t* data) {
  Input in{{Format::Kind(data[0] % 128 % 3), 1 << data[0] % 128 / 3 % 4},
           (data[1] | data[2] << 8) % 8192 + 1u,
           data[3] + 1u};
  if (in.n % in.columns && !(data[0] & kMixed)) in.columns = in.n;
  if (in.format.kind == Format::boolean) in.format.bytes = 1;
  return in;
}

Bytes decoded(const Bytes& payload, const Input& in) {
  Bytes out(in.n * size_t(in.format.bytes));
  crest::codec::decode_tensor(payload.data(), payload.size(), out.data(), in.n, in.format);
  return out;
}

void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "%s\n", what);
  std::abort();
}

std::vector<int16_t> unmixed(const Bytes& payload, const Input& in, uint64_t count,
                             std::vector<crest::codec::Matrix>& matrices) {
  std::vector<int16_t> out(in.n);
  matrices = crest::codec::decode_mixed(payload.data(), payload.size(), out.data(), in.n, count);
  return out;
}

bool run_mixed(const Bytes& payload, const Input& in) {
  std::vector<crest::codec::Matrix> matrices;
  std::vector<int16_t> out;
  try {
    out = unmixed(payload, in, in.columns % 8, matrices);
  } catch (const std::invalid_argument&) {
    return false;
  }
  const Bytes again = crest::codec::encode_mixed(out.data(), matrices);
  require(unmixed(again, in, matrices.size(), matrices) == out, "integers must be encoded without loss");
  return true;
}

// Whether the payload was accepted. What was accepted survives the way through encoder and decoder.
bool run(const uint8_t* data, size_t size) {
  if (size < kHead) return false;
  const Input in = parse(data);
  const Bytes payload(data + kHead, data + size);  // its own memory: the sanitizer sees one byte too many
  if (data[0] & kMixed) return run_mixed(payload, in);
  Bytes out;
  try {
    out = decoded(payload, in);
  } catch (const std::invalid_argument&) {
    return false;
  }
  const Bytes again = crest::codec::encode_tensor(out.data(), in.n, in.format, in.columns);
  require(decoded(again, in) == out, "what was decoded must be encoded without loss");
  return true;
}

}  // namespace

namespace {

std::mt19937_64 random_bits;

uint64_t below(uint64_t n) { return random_bits() % n; }

// Some distribution of words, some pattern of zeros.
Bytes tensor(const Input& in) {
  Bytes data(in.n * size_t(in.format.bytes));
  const uint64_t keep = below(101), style = below(4), period = 1 + below(40);
  for (uint64_t i = 0; i < in.n; ++i) {
    uint64_t word = random_bits() >> (style == 0 ? 0 : style == 1 ? 8 * (8 - in.format.bytes) + below(8) : 60);
    if (style == 3) word = word % 3 << 8 * (in.format.bytes - 1) >> 1;
    if (i % period ? below(100) >= keep : below(4) == 0) word = below(8) ? 0 : uint64_t{1} << (8 * in.format.bytes - 1);
    if (in.format.kind == Format::boolean) word = word != 0;
    std::memcpy(&data[i * size_t(in.format.bytes)], &word, size_t(in.format.bytes));
  }
  return data;
}

void mutate(Bytes& b) {
  for (uint64_t k = 1 + below(4); k-- > 0 && b.size() > kHead;) {
    // Models stand at the start, states of the coder at the end.
    uint64_t at = below(3) ? below(b.size()) : kHead + below(std::min<size_t>(40, b.size() - kHead));
    const uint8_t edges[] = {0, 1, 0x7f, 0x80, 0xff, uint8_t(random_bits())};
    switch (below(6)) {
      case 0: b[at] ^= uint8_t(1 << below(8)); break;
      case 1: b[at] = edges[below(6)]; break;
      case 2: b.insert(b.begin() + int64_t(at), edges[below(6)]); break;
      case 3: b.erase(b.begin() + int64_t(at)); break;
      case 4: b.resize(at); break;
      default: b[at] = b[below(b.size())];
    }
  }
}

// A head, and the payload of random matrices.
Bytes mixed_seed(Bytes head) {
  Input in = parse(head.data());
  const uint64_t count = 1 + below(4), most = below(4) ? 1 + below(8) : crest::codec::kMaxInteger, keep = below(101);
  std::vector<crest::codec::Matrix> matrices;
  in.n = 0;
  for (uint64_t i = 0; i < count; ++i) {
    const uint64_t group = below(2) ? 1 : 1 + below(9);
    const bool as_before = i > 0 && below(2);
    matrices.push_back(as_before ? matrices.back()
                                 : crest::codec::Matrix{1 + below(18), group * (1 + below(12)), group});
    in.n += matrices.back().rows * matrices.back().columns;
  }
  std::vector<int16_t> data(in.n);
  for (int16_t& v : data)
    if (below(100) < keep) v = int16_t(int64_t(below(2 * most + 1)) - int64_t(most));
  const Bytes payload = crest::codec::encode_mixed(data.data(), matrices);
  require(unmixed(payload, in, count, matrices) == data, "integers must come back");
  head[1] = uint8_t(in.n - 1);
  head[2] = uint8_t((in.n - 1) >> 8);
  head[3] = uint8_t(count - 1);
  head.insert(head.end(), payload.begin(), payload.end());
  return head;
}

// A head, and the payload of a random tensor.
Bytes seed() {
  Bytes head(kHead);
  for (uint8_t& b : head) b = uint8_t(random_bits());
  if (head[0] & kMixed) return mixed_seed(head);
  if (below(2)) head[2] = 0;
  const Input in = parse(head.data());
  const Bytes data = tensor(in);
  const Bytes payload = crest::codec::encode_tensor(data.data(), in.n, in.format, in.columns);
  require(decoded(payload, in) == data, "a tensor must come back bit for bit");
  head.insert(head.end(), payload.begin(), payload.end());
  return head;
}

}  // namespace

#ifdef CREST_LIBFUZZER

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t most);

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  run(data, size);
  return 0;
}

// Bits at random rarely get past the models: new payloads, changed fields, tables and states, and parts of two
// payloads.
extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t most, unsigned int number) {
  random_bits.seed(number);
  if (size < kHead || below(8) == 0) {
    const Bytes made = seed();
    if (made.size() > most) return LLVMFuzzerMutate(data, size, most);
    std::memcpy(data, made.data(), made.size());
    return made.size();
  }
  if (below(3) == 0) return LLVMFuzzerMutate(data, size, most);
  Bytes b(data, data + size);
  mutate(b);
  if (b.size() > most) b.resize(most);
  std::memcpy(data, b.data(), b.size());
  return b.size();
}

// Models of one payload before symbols and states of another one.
extern "C" size_t LLVMFuzzerCustomCrossOver(const uint8_t* a, size_t a_size, const uint8_t* b, size_t b_size,
                                            uint8_t* out, size_t most, unsigned int number) {
  random_bits.seed(number);
  const size_t front = std::min(most, below(std::min<size_t>(a_size, 64) + 1));
  const size_t back = std::min(most - front, below(b_size + 1));
  std::memcpy(out, a, front);
  std::memcpy(out + front, b + b_size - back, back);
  return front + back;
}

#else

int main(int, char** argv) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(int64_t(1000 * std::atof(argv[1])));
  random_bits.seed(std::strtoull(argv[2], nullptr, 10));
  uint64_t tensors = 0, inputs = 0, accepted = 0;
  const auto mutants = [&](const Bytes& input) {
    for (int k = 0; k < 50; ++k, ++inputs) {
      Bytes mutant = input;
      mutate(mutant);
      accepted += run(mutant.data(), mutant.size());
    }
  };
  while (std::chrono::steady_clock::now() < end) {
    if (below(2)) {
      Bytes head(kHead);
      head[0] = kMixed;
      const Bytes input = mixed_seed(head);
      require(run(input.data(), input.size()), "what was encoded must be accepted");
      mutants(input);
      ++tensors;
      continue;
    }
    // A few large ones take four lanes.
    Bytes head(kHead);
    for (uint8_t& b : head) b = uint8_t(random_bits());
    head[0] &= uint8_t(~kMixed);
    if (below(2)) head[2] = 0;
    Input in = parse(head.data());
    if (below(64) == 0) in.n = in.columns = 1 << 16;
    const Bytes data = tensor(in);
    Bytes payload = crest::codec::encode_tensor(data.data(), in.n, in.format, in.columns);
    require(decoded(payload, in) == data, "a tensor must come back bit for bit");
    ++tensors;
    if (in.n > 8192) continue;
    for (size_t cut = 0; cut < payload.size(); cut += 1 + payload.size() / 64) {
      Bytes part = head;
      part.insert(part.end(), payload.begin(), payload.begin() + int64_t(cut));
      run(part.data(), part.size());
    }
    payload.insert(payload.begin(), head.begin(), head.end());
    mutants(payload);
  }
  std::printf("%llu tensors, %llu inputs, %llu accepted\n", (unsigned long long)tensors, (unsigned long long)inputs,
              (unsigned long long)accepted);
}

#endif
