#pragma once
// Argument checks. A failed one throws std::invalid_argument, which torch turns into a Python ValueError with
// exactly this text: "<op>: <argument> must <rule>, got <value>". Ops check in the order rank, shape, dtype, device,
// values, and before anything runs: torch loses the text of an exception thrown inside parallel_for.
#include <torch/csrc/stable/tensor.h>

#include <sstream>
#include <stdexcept>

#include "dtype.h"

namespace crest {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class... Args>
[[noreturn]] void fail(const Args&... args) {
  std::ostringstream text;
  (text << ... << args);
  throw std::invalid_argument(text.str());
}

}  // namespace crest

#define CREST_CHECK(cond, ...)               \
  do {                                       \
    if (!(cond)) ::crest::fail(__VA_ARGS__); \
  } while (false)

namespace crest {

// What messages print of a tensor.
struct Shape {
  const Tensor& t;
  const char* last = nullptr;  // a letter in place of the last size
};
struct Type {
  const Tensor& t;
};
struct Place {
  const Tensor& t;
};
std::ostream& operator<<(std::ostream&, const Shape&);  // (3, 4), (3, k)
std::ostream& operator<<(std::ostream&, const Type&);   // float32
std::ostream& operator<<(std::ostream&, const Place&);  // cuda:0

// The checks that every op shares. `arg` and `like` are the arguments' names in messages.
void check_same_shape(const char* op, const char* arg, const Tensor& t, const char* like, const Tensor& other);
void check_same_dtype(const char* op, const char* arg, const Tensor& t, const char* like, const Tensor& other);
void check_same_device(const char* op, const char* arg, const Tensor& t, const char* like, const Tensor& other);
void check_bool(const char* op, const char* arg, const Tensor& t);
void check_contiguous(const char* op, const char* arg, const Tensor& t);  // for what is written in place

// The kernel's name of a tensor's dtype; ValueError unless it is a floating one of `Dtype`.
Dtype check_floating(const char* op, const char* arg, const Tensor& t);

}  // namespace crest
