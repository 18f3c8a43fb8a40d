#pragma once
// A call of max_pool2d that has been checked: what both ways to hold x, a tensor and planes, begin with.
#include "conv_host.h"
#include "max_pool2d.h"

namespace crest {

struct Window {
  Ints kernel, stride, padding, dilation;
  bool ceil_mode;
};

// x has the dtype, and `sizes` are (n, c, h, w). All but x and y is set, for an x without gaps.
MaxPool2d check_max_pool2d(const Tensor& x, const Ints& sizes, const Window&);
void max_pool2d_on_cpu(const MaxPool2d&);

}  // namespace crest
