#pragma once
// What the dense convolutions and pooling share: checks of sizes, and memory formats.
#include <string>
#include <vector>

#include "check.h"
#include "depthwise_conv2d.h"

namespace crest {

using Ints = std::vector<int64_t>;
struct List {  // what messages print of it
  const Ints& values;
};
std::ostream& operator<<(std::ostream&, const List&);  // (1, 2)

Ints sizes_of(const Tensor& t);

// Checks that there are two, none below `least`.
void check_pair(const char* op, const char* arg, const Ints& values, int64_t least);

// The sizes of a convolution of x (n, c, h, w) by weight (m, ..., kh, kw).
struct ConvSizes {
  int64_t h, w, kh, kw, stride_h, stride_w, top, bottom, left, right, dilation_h, dilation_w;
  int64_t out_h, out_w;
};

// Checks stride (2), padding (2 or 4: top, bottom, left, right) and dilation (2), and that a kernel (kh, kw) fits.
ConvSizes check_conv(const char* op, int64_t h, int64_t w, int64_t kh, int64_t kw, const Ints& stride,
                     const Ints& padding, const Ints& dilation);

// TensorFlow's SAME of an image and a kernel, (h, w) each: the result has ceil(size / stride), an odd zero comes last.
Ints same_padding(const Ints& image, const Ints& kernel, const Ints& stride, const Ints& dilation);

Activation check_activation(const char* op, const char* arg, const std::string& name);

// Whether t (n, c, h, w) has its channels last in memory. Where both would do, it has not.
bool is_channels_last(const Tensor& t);

// t itself where it has that format already, and a new tensor of the format.
Tensor in_format(const Tensor& t, bool channels_last);
Tensor new_in_format(const Tensor& like, const Ints& sizes, bool channels_last);

}  // namespace crest
