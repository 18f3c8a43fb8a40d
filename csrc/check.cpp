#include "check.h"

namespace crest {
namespace {

const char* dtype_name(ScalarType type) {
  switch (type) {
    case ScalarType::Float: return "float32";
    case ScalarType::Double: return "float64";
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Half: return "float16";
    case ScalarType::Bool: return "bool";
    case ScalarType::Byte: return "uint8";
    case ScalarType::Char: return "int8";
    case ScalarType::Short: return "int16";
    case ScalarType::Int: return "int32";
    case ScalarType::Long: return "int64";
    case ScalarType::ComplexFloat: return "complex64";
    case ScalarType::ComplexDouble: return "complex128";
    default: return "another dtype";
  }
}

}  // namespace

std::ostream& operator<<(std::ostream& os, const Shape& s) {
  const int64_t dim = s.t.dim();
  os << '(';
  for (int64_t i = 0; i < dim; ++i) {
    os << (i ? ", " : "");
    s.last&& i == dim - 1 ? os << s.last : os << s.t.size(i);
  }
  return os << (dim == 1 ? ",)" : ")");
}

std::ostream& operator<<(std::ostream& os, const Type& s) { return os << dtype_name(s.t.scalar_type()); }

std::ostream& operator<<(std::ostream& os, const Place& s) {
  if (s.t.is_cpu()) return os << "cpu";
  if (s.t.is_cuda()) return os << "cuda:" << s.t.get_device_index();
  return os << "another device";
}

void check_same_shape(const char* op, const char* arg, const Tensor& t, const char* like, const Tensor& other) {
  CREST_CHECK(t.sizes().equals(other.sizes()), op, ": ", arg, " must have the shape of ", like, ", ", Shape{other},
              ", got ", Shape{t});
}

void check_same_dtype(const char* op, const char* arg, const Tensor& t, const char* like, const Tensor& other) {
  CREST_CHECK(t.scalar_type() == other.scalar_type(), op, ": ", arg, " must have the dtype of ", like, ", ",
              Type{other}, ", got ", Type{t});
}

void check_same_device(const char* op, const char* arg, const Tensor& t, const char* like, const Tensor& other) {
  CREST_CHECK(t.device() == other.device(), op, ": ", arg, " must be on the device of ", like, ", ", Place{other},
              ", got ", Place{t});
}

void check_bool(const char* op, const char* arg, const Tensor& t) {
  CREST_CHECK(t.scalar_type() == ScalarType::Bool, op, ": ", arg, " must be bool, got ", Type{t});
}

void check_contiguous(const char* op, const char* arg, const Tensor& t) {
  CREST_CHECK(t.is_contiguous(), op, ": ", arg,
              " must be contiguous, since it is written in place, got strides of a view");
}

Dtype check_floating(const char* op, const char* arg, const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float: return Dtype::float32;
    case ScalarType::Double: return Dtype::float64;
    case ScalarType::BFloat16: return Dtype::bfloat16;
    case ScalarType::Half: return Dtype::float16;
    default: fail(op, ": ", arg, " must be float32, float64, bfloat16 or float16, got ", Type{t});
  }
}

}  // namespace crest
