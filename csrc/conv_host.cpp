#include "conv_host.h"

#include <algorithm>

#include "aten.h"

namespace crest {
namespace {

using torch::headeronly::MemoryFormat;

constexpr int64_t most = INT32_MAX;  // so that sums and products of a few do not overflow

void check_least(const char* op, const char* arg, const Ints& values, int64_t least) {
  for (const int64_t value : values) {
    CREST_CHECK(value >= least, op, ": ", arg, " must be at least ", least, ", got ", List{values});
    CREST_CHECK(value <= most, op, ": ", arg, " must be at most ", most, ", got ", List{values});
  }
}

}  // namespace

Ints sizes_of(const Tensor& t) {
  const auto sizes = t.sizes();
  return {sizes.begin(), sizes.end()};
}

void check_pair(const char* op, const char* arg, const Ints& values, int64_t least) {
  CREST_CHECK(values.size() == 2, op, ": ", arg, " must be 2 ints, got ", List{values});
  check_least(op, arg, values, least);
}

std::ostream& operator<<(std::ostream& os, const List& list) {
  os << '(';
  for (size_t i = 0; i < list.values.size(); ++i) os << (i ? ", " : "") << list.values[i];
  return os << (list.values.size() == 1 ? ",)" : ")");
}

ConvSizes check_conv(const char* op, int64_t h, int64_t w, int64_t kh, int64_t kw, const Ints& stride,
                     const Ints& padding, const Ints& dilation) {
  check_pair(op, "stride", stride, 1);
  CREST_CHECK(padding.size() == 2 || padding.size() == 4, op, ": padding must be 2 or 4 ints, got ", List{padding});
  check_least(op, "padding", padding, 0);
  check_pair(op, "dilation", dilation, 1);
  const bool four = padding.size() == 4;
  ConvSizes s{h,
              w,
              kh,
              kw,
              stride[0],
              stride[1],
              padding[0],
              padding[four ? 1 : 0],
              padding[four ? 2 : 1],
              padding[four ? 3 : 1],
              dilation[0],
              dilation[1],
              0,
              0};
  const int64_t span_h = (kh - 1) * s.dilation_h + 1, span_w = (kw - 1) * s.dilation_w + 1;
  const int64_t room_h = h + s.top + s.bottom, room_w = w + s.left + s.right;
  CREST_CHECK(span_h <= room_h && span_w <= room_w, op, ": weight must fit in the padded image, (", room_h, ", ",
              room_w, "), got a kernel that spans (", span_h, ", ", span_w, ")");
  s.out_h = (room_h - span_h) / s.stride_h + 1;
  s.out_w = (room_w - span_w) / s.stride_w + 1;
  return s;
}

Ints same_padding(const Ints& image, const Ints& kernel, const Ints& stride, const Ints& dilation) {
  Ints padding(4);
  for (size_t d = 0; d < 2; ++d) {
    const int64_t outputs = (image[d] + stride[d] - 1) / stride[d];
    const int64_t all = std::max<int64_t>((outputs - 1) * stride[d] + (kernel[d] - 1) * dilation[d] + 1 - image[d], 0);
    padding[2 * d] = all / 2, padding[2 * d + 1] = all - all / 2;
  }
  return padding;
}

Activation check_activation(const char* op, const char* arg, const std::string& name) {
  if (name == "none") return Activation::none;
  if (name == "relu") return Activation::relu;
  CREST_CHECK(name == "relu6", op, ": ", arg, " must be none, relu or relu6, got ", name);
  return Activation::relu6;
}

bool is_channels_last(const Tensor& t) {
  if (t.is_contiguous() || t.numel() == 0) return false;
  int64_t expected = 1;
  for (const int64_t d : {1, 3, 2, 0}) {
    if (t.size(d) != 1 && t.stride(d) != expected) return false;
    expected *= t.size(d);
  }
  return true;
}

Tensor in_format(const Tensor& t, bool channels_last) {
  if (channels_last ? is_channels_last(t) : t.is_contiguous()) return t;
  return torch::stable::contiguous(t, channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

Tensor new_in_format(const Tensor& like, const Ints& sizes, bool channels_last) {
  if (!channels_last) return aten::empty(like, sizes);
  const int64_t c = sizes[1], w = sizes[3];
  return aten::empty(like, sizes, Ints{sizes[2] * w * c, 1, w * c, c});
}

}  // namespace crest
