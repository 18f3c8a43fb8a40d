// crest_ext._C: what is not an op on tensors.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <stdexcept>
#include <string>
#include <vector>

#include "codec/mixed.h"
#include "codec/tensor.h"
#include "isa.h"

namespace {

namespace py = pybind11;
using crest::codec::Format;

Format format(const std::string& kind, int itemsize) {
  const bool known = kind == "bool" || kind == "int" || kind == "float";
  if (!known) throw std::invalid_argument("kind must be 'bool', 'int' or 'float', got '" + kind + "'");
  if (itemsize != 1 && itemsize != 2 && itemsize != 4 && itemsize != 8)
    throw std::invalid_argument("itemsize must be 1, 2, 4 or 8, got " + std::to_string(itemsize));
  if (kind == "bool" && itemsize != 1)
    throw std::invalid_argument("itemsize of bool must be 1, got " + std::to_string(itemsize));
  return {kind == "bool" ? Format::boolean : kind == "int" ? Format::integer : Format::floating, itemsize};
}

size_t elements(const py::buffer_info& info, const Format& format) {
  const size_t n = size_t(info.size * info.itemsize) / size_t(format.bytes);
  if (info.ndim != 1 || info.itemsize != 1 || n == 0 || n * size_t(format.bytes) != size_t(info.size))
    throw std::invalid_argument("buffer must be bytes of at least one element");
  if (info.strides[0] != 1) throw std::invalid_argument("buffer must be contiguous");
  return n;
}

py::bytes encode_tensor(const py::buffer& data, const std::string& kind, int itemsize, size_t columns) {
  const Format f = format(kind, itemsize);
  const py::buffer_info info = data.request();
  const size_t n = elements(info, f);
  if (columns == 0 || n % columns)
    throw std::invalid_argument("columns must divide " + std::to_string(n) + ", got " + std::to_string(columns));
  std::vector<uint8_t> payload;
  {
    py::gil_scoped_release release;
    payload = crest::codec::encode_tensor(static_cast<const uint8_t*>(info.ptr), n, f, columns);
  }
  return py::bytes(reinterpret_cast<const char*>(payload.data()), payload.size());
}

void decode_tensor(const py::buffer& payload, const py::buffer& out, const std::string& kind, int itemsize) {
  const Format f = format(kind, itemsize);
  const py::buffer_info from = payload.request(), to = out.request(/*writable=*/true);
  const size_t n = elements(to, f);
  if (from.ndim != 1 || from.itemsize != 1 || from.strides[0] != 1)
    throw std::invalid_argument("payload must be contiguous bytes");
  py::gil_scoped_release release;
  crest::codec::decode_tensor(static_cast<const uint8_t*>(from.ptr), size_t(from.size), static_cast<uint8_t*>(to.ptr),
                              n, f);
}

using Sizes = std::vector<std::array<size_t, 3>>;  // rows, columns and group of each matrix

py::bytes encode_mixed(const py::buffer& integers, const Sizes& sizes) {
  const py::buffer_info info = integers.request();
  if (info.ndim != 1 || info.format != py::format_descriptor<int16_t>::format() || info.strides[0] != info.itemsize)
    throw std::invalid_argument("integers must be contiguous int16");
  std::vector<crest::codec::Matrix> matrices;
  size_t left = size_t(info.size);
  for (const auto& [rows, columns, group] : sizes) {
    if (rows == 0 || columns == 0 || rows > left / columns || group == 0 || columns % group)
      throw std::invalid_argument("sizes must be rows, columns and group of matrices that have all integers");
    left -= rows * columns;
    matrices.push_back({rows, columns, group});
  }
  if (left) throw std::invalid_argument("sizes must be rows, columns and group of matrices that have all integers");
  std::vector<uint8_t> payload;
  {
    py::gil_scoped_release release;
    payload = crest::codec::encode_mixed(static_cast<const int16_t*>(info.ptr), matrices);
  }
  return py::bytes(reinterpret_cast<const char*>(payload.data()), payload.size());
}

std::vector<size_t> decode_mixed(const py::buffer& payload, const py::buffer& out, size_t matrices) {
  const py::buffer_info from = payload.request(), to = out.request(/*writable=*/true);
  if (from.ndim != 1 || from.itemsize != 1 || from.strides[0] != 1)
    throw std::invalid_argument("payload must be contiguous bytes");
  if (to.ndim != 1 || to.format != py::format_descriptor<int16_t>::format() || to.strides[0] != to.itemsize)
    throw std::invalid_argument("out must be contiguous int16");
  py::gil_scoped_release release;
  std::vector<size_t> counts;
  for (const auto& m : crest::codec::decode_mixed(static_cast<const uint8_t*>(from.ptr), size_t(from.size),
                                                  static_cast<int16_t*>(to.ptr), size_t(to.size), matrices))
    counts.push_back(m.rows * m.columns);
  return counts;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.def("available_isas", [] {
    std::vector<std::string> names;
    for (crest::Isa isa : crest::isas)
      if (crest::supported(isa)) names.push_back(crest::name(isa));
    return names;
  });
  m.def("active_isa", [] { return std::string(crest::name(crest::active_isa())); });
  m.def("set_active_isa", [](const std::string& isa) { crest::set_active_isa(isa.c_str()); }, py::arg("isa"));
  m.def("encode_tensor", encode_tensor, py::arg("data"), py::arg("kind"), py::arg("itemsize"), py::arg("columns"));
  m.def("decode_tensor", decode_tensor, py::arg("payload"), py::arg("out"), py::arg("kind"), py::arg("itemsize"));
  m.def("encode_mixed", encode_mixed, py::arg("integers"), py::arg("sizes"));
  m.def("decode_mixed", decode_mixed, py::arg("payload"), py::arg("out"), py::arg("matrices"));
  m.attr("version") = CREST_VERSION;
  m.attr("compiler") = __VERSION__;
#ifdef CREST_CUDA
  m.attr("cuda") = true;
#else
  m.attr("cuda") = false;
#endif
}
