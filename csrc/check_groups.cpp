#include "check_groups.h"

namespace crest {

Groups check_groups(const char* op, const Tensor& weight, const std::string& name) {
  CREST_CHECK(weight.dim() >= 2, op, ": weight must have at least 2 dimensions, got ", Shape{weight});
  const int64_t n = weight.size(0), c = weight.size(1);
  int64_t rest = 1;
  for (int64_t i = 2; i < weight.dim(); ++i) rest *= weight.size(i);
  if (name == "filter" || name == "row") return {1, n, c * rest};
  if (name == "channel") return {n, c, rest};
  if (name == "shape" || name == "column") return {n, c * rest, 1};
  if (name == "kernel") return {1, n * c, rest};
  if (name == "layer") return {n, 1, c * rest};
  fail(op, ": groups must be filter, channel, shape, kernel, layer, row or column, got ", name);
}

}  // namespace crest
