#include <torch/csrc/stable/ops.h>

#include "aten.h"
#include "sparse_planes.h"

namespace crest {

Images shortcut(const Images& x, const Ints& stride, const Ints& channels) {
  const Tensor from = tensor_of(x);
  CREST_CHECK(from.dim() == 4, "shortcut: x must have 4 dimensions, got ", Shape{from});
  check_pair("shortcut", "stride", stride, 1);
  check_pair("shortcut", "channels", channels, 0);
  if (const auto* planes = std::get_if<SparsePlanes>(&x)) return planes->shortcut(stride, channels);
  const int64_t h = (from.size(2) + stride[0] - 1) / stride[0], w = (from.size(3) + stride[1] - 1) / stride[1];
  Tensor y = aten::empty(from, {from.size(0), channels[0] + from.size(1) + channels[1], h, w});
  torch::stable::zero_(y);
  Tensor middle = torch::stable::narrow(y, 1, channels[0], from.size(1));
  torch::stable::copy_(middle, aten::every(aten::every(from, 2, stride[0]), 3, stride[1]));
  return y;
}

}  // namespace crest
