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
  return torch::stable::pad(aten::every(aten::every(from, 2, stride[0]), 3, stride[1]),
                            Ints{0, 0, 0, 0, channels[0], channels[1]});
}

}  // namespace crest
