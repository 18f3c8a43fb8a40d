#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <memory>

#include "aten.h"
#include "cuda_device.h"
#include "inference.h"
#include "scratch.h"
#include "sparse_conv2d_call.h"
#include "sparse_conv2d_work.h"

namespace crest {
namespace {

constexpr const char* op = "sparse_conv2d";

void check_vector(const char* arg, const Tensor& t, const Tensor& x, int64_t size) {
  CREST_CHECK(t.dim() == 1, op, ": ", arg, " must have 1 dimension, got ", Shape{t});
  CREST_CHECK(size < 0 || t.size(0) == size, op, ": ", arg, " must have ", size, " elements, got ", t.size(0));
  check_same_device(op, arg, t, "x", x);
}

void check_list(const char* arg, const Ints& list, size_t size, int64_t least) {
  CREST_CHECK(list.size() == size, op, ": ", arg, " must have ", size, " numbers, got ", list.size());
  const int64_t lowest = *std::min_element(list.begin(), list.end());
  CREST_CHECK(lowest >= least, op, ": ", arg, " must be at least ", least, ", got ", lowest);
}

void run(const SparseConv2d& a, const Tensor& x);  // where it is

}  // namespace

// What the index tensors hold is not checked here, at each call, but once by crest_ext.PackedSparseConv2d.check.
SparseConv2dCall::SparseConv2dCall(const Tensor& x, const Ints& sizes, const Tensor& values, const Tensor& columns,
                                   const Tensor& starts, const Ints& weight_shape, const std::optional<Tensor>& bias,
                                   const Ints& stride, const Ints& padding, const Ints& dilation, int64_t groups,
                                   const Text& activation)
    : values_(in_format(values, false)), columns_(in_format(columns, false)), starts_(in_format(starts, false)) {
  check_list("weight_shape", weight_shape, 4, 1);
  check_list("stride", stride, 2, 1);
  check_list("padding", padding, 2, 0);
  check_list("dilation", dilation, 2, 1);
  const int64_t m = weight_shape[0], per_group = weight_shape[1];
  CREST_CHECK(groups >= 1 && m % groups == 0, op, ": groups must divide the ", m, " filters, got ", groups);
  CREST_CHECK(sizes[1] == per_group * groups, op, ": x must have ", per_group * groups, " channels, got ", List{sizes});
  a.n = sizes[0], a.c = sizes[1], a.h = sizes[2], a.w = sizes[3], a.m = m, a.groups = groups;
  a.kh = weight_shape[2], a.kw = weight_shape[3];
  int64_t out[2];
  for (size_t i = 0; i < 2; ++i) {
    a.stride[i] = stride[i], a.padding[i] = padding[i], a.dilation[i] = dilation[i];
    const int64_t room = sizes[2 + i] + 2 * padding[i] - (weight_shape[2 + i] - 1) * dilation[i] - 1;
    CREST_CHECK(room >= 0, op, ": x must be at least as large as the kernel, got ", List{sizes}, " and a kernel of ",
                weight_shape[2], "x", weight_shape[3]);
    out[i] = room / stride[i] + 1;
  }
  a.oh = out[0], a.ow = out[1];
  CREST_CHECK(x.scalar_type() == ScalarType::Float, op, ": x must be float32, got ", Type{x});
  a.dtype = check_floating(op, "values", values);
  CREST_CHECK(a.dtype != Dtype::float64, op, ": values must be float32, bfloat16 or float16, got float64");
  check_vector("values", values, x, -1);
  CREST_CHECK(columns.scalar_type() == ScalarType::Byte, op, ": columns must be uint8, got ", Type{columns});
  check_vector("columns", columns, x, values.size(0));
  CREST_CHECK(starts.scalar_type() == ScalarType::Int, op, ": starts must be int32, got ", Type{starts});
  check_vector("starts", starts, x, tiles_of_filter(a) * m + 1);
  if (bias) {
    CREST_CHECK(bias->dim() == 1 && bias->size(0) == m, op, ": bias must have shape (", m, ",), got ", Shape{*bias});
    check_same_dtype(op, "bias", *bias, "x", x);
    check_same_device(op, "bias", *bias, "x", x);
  }
  a.activation = check_activation(op, "activation", activation);
  a.values = values_.const_data_ptr(), a.columns = columns_.const_data_ptr<uint8_t>();
  a.starts = starts_.const_data_ptr<int32_t>();
  if (bias) bias_ = in_format(*bias, false), a.bias = bias_->const_data_ptr<float>();
}

void SparseConv2dCall::check_addend(const Tensor& x, const Tensor& addend, const Ints& sizes) const {
  CREST_CHECK(sizes == Ints({a.n, a.m, a.oh, a.ow}), op, ": addend must have shape (", a.n, ", ", a.m, ", ", a.oh, ", ",
              a.ow, "), got ", List{sizes});
  check_same_dtype(op, "addend", addend, "x", x);
  check_same_device(op, "addend", addend, "x", x);
}

Tensor sparse_conv2d(const Tensor& x, const Tensor& values, const Tensor& columns, const Tensor& starts,
                     const Ints& weight_shape, const std::optional<Tensor>& bias, const Ints& stride,
                     const Ints& padding, const Ints& dilation, int64_t groups, const Text& activation,
                     const std::optional<Tensor>& addend) {
  CREST_CHECK(x.dim() == 4, op, ": x must have 4 dimensions, got ", Shape{x});
  return run_sparse_conv2d(
      x, {x, sizes_of(x), values, columns, starts, weight_shape, bias, stride, padding, dilation, groups, activation},
      addend);
}

// f(room, begin, end) for parts of [0, items), each of `numbers`; room is for the order of lanes to be changed.
template <class F>
void for_planes(const ConvPlanes& p, int64_t items, int64_t numbers, const F& f) {
  torch::stable::parallel_for(0, items, 1 + (1 << 15) / numbers, [&](int64_t begin, int64_t end) {
    const std::unique_ptr<float[]> room(new float[p.neighbours ? 0 : p.flat]);
    f(room.get(), begin, end);
  });
}

void pack_planes(const SparseConv2d& a, const ConvPlanes& p, float* planes) {
  const auto pack = CREST_KERNEL(sparse_conv2d_pack);
  for_planes(p, a.c * p.phases[0] * p.phases[1], p.x_plane,
             [&](float* room, int64_t begin, int64_t end) { pack(a, p, planes, room, begin, end); });
}

void unpack_planes(const SparseConv2d& a, const ConvPlanes& p, const float* planes) {
  const auto unpack = CREST_KERNEL(sparse_conv2d_unpack);
  for_planes(p, a.m, p.y_plane,
             [&](float* room, int64_t begin, int64_t end) { unpack(a, p, planes, room, begin, end); });
}

void multiply_planes(const SparseConv2d& a, const ConvPlanes& p, const float* x, float* y, const bool* kept) {
  const Numbers to = distances(a, p), work = work_before(a);
  const ConvProduct product{p, x, y, to.get(), work.get(), kept};
  const auto multiply = CREST_KERNEL(sparse_conv2d_multiply);
  torch::stable::parallel_for(0, p.images * p.tiles * work[static_cast<size_t>(a.m)],
                              1 + (1 << 15) / (p.y_plane / p.steps),
                              [&](int64_t begin, int64_t end) { multiply(a, product, begin, end); });
}

Tensor run_sparse_conv2d(const Tensor& x, SparseConv2dCall call, const std::optional<Tensor>& addend) {
  SparseConv2d& a = call.a;
  std::optional<Tensor> more;
  if (addend) call.check_addend(x, *addend, sizes_of(*addend)), more = in_format(*addend, false);
  Tensor y = aten::empty(x, {a.n, a.m, a.oh, a.ow});
  if (y.numel() == 0) return y;
  const Tensor in = in_format(x, false);
  a.x = in.const_data_ptr<float>(), a.y = y.mutable_data_ptr<float>();
  a.addend = more ? more->const_data_ptr<float>() : nullptr;
  run(a, in);
  return y;
}

namespace {

// Planes of as many images as stay in the second level of cache, and no less than one. One, if its sums can go to y and
// its planes are not much more than its numbers.
int64_t images_at_once(SparseConv2d a) {
  a.n = 1;
  ConvPlanes p;
  CREST_KERNEL(sparse_conv2d_plan)(a, p);
  if (p.to_y && p.y_plane - a.oh * a.ow <= a.oh * a.ow / 8) return 1;
  return std::max<int64_t>(1, cached_numbers / room_for_planes(a, p));
}

// f(a of some images, their planes, room for these) for as many images at a time as stay in cache.
template <class F>
void for_images(SparseConv2d a, const F& f) {
  for (int64_t left = a.n, most = images_at_once(a); left; left -= a.n) {
    a.n = std::min(left, most);
    ConvPlanes p;
    CREST_KERNEL(sparse_conv2d_plan)(a, p);
    Scratch scratch(room_for_planes(a, p));
    f(a, p, scratch.data());
    const int64_t done = a.n * a.m * a.oh * a.ow;
    a.x += a.n * a.c * a.h * a.w, a.y += a.y ? done : 0, a.addend += a.addend ? done : 0;
  }
}

// Makes planes of the sums of some images, unless these go to y.
float* make_sums(const SparseConv2d& a, const ConvPlanes& p, float* planes) {
  float* y = planes + a.c * p.phases[0] * p.phases[1] * p.x_plane;
  pack_planes(a, p, planes);
  multiply_planes(a, p, planes, y, nullptr);
  return y;
}

void on_cpu(SparseConv2d a, const Tensor&) {
  if (a.kh * a.kw * a.stride[0] * a.stride[1] == 1 && a.padding[0] + a.padding[1] == 0) {  // rows do not matter
    a.w *= a.h, a.ow *= a.oh;
    a.h = a.oh = 1;
  }
  ConvPlanes all;
  CREST_KERNEL(sparse_conv2d_plan)(a, all);
  if (all.in_place) return multiply_planes(a, all, a.x, a.y, nullptr);
  for_images(a, [&](const SparseConv2d& some, const ConvPlanes& p, float* planes) {
    const float* y = make_sums(some, p, planes);
    if (!p.to_y) unpack_planes(some, p, y);
  });
}

void run(const SparseConv2d& a, const Tensor& x) {
#ifdef CREST_CUDA
  if (x.is_cuda()) return cuda::sparse_conv2d(a, CudaDevice(x).stream());
#endif
  on_cpu(a, x);
}

}  // namespace

Tensor run_pooled_sparse_conv2d(const Tensor& x, SparseConv2dCall call, const Window& window) {
  SparseConv2d& a = call.a;
  MaxPool2d pool = check_max_pool2d(x, {a.n, a.m, a.oh, a.ow}, window);
  Tensor y = aten::empty(x, {a.n, a.m, pool.out_h, pool.out_w});
  if (y.numel() == 0) return y;
  const Tensor in = in_format(x, false);
  a.x = in.const_data_ptr<float>(), pool.y = y.mutable_data_ptr<float>();
  for_images(a, [&](SparseConv2d some, const ConvPlanes& p, float* planes) {
    const float* sums = make_sums(some, p, planes);
    Scratch unpacked(p.neighbours ? 0 : some.n * some.m * some.oh * some.ow);
    MaxPool2d part = pool;
    part.planes = some.n * some.m;
    if (p.neighbours) {
      part.x = sums, part.channels = some.m, part.x_row = p.qw, part.x_plane = p.y_plane, part.x_image = p.qh * p.qw;
    } else {
      part.x = some.y = unpacked.data();
      unpack_planes(some, p, sums);
    }
    max_pool2d_on_cpu(part);
    pool.y += part.planes * pool.out_h * pool.out_w;
  });
  return y;
}

namespace {

STABLE_TORCH_LIBRARY_IMPL(crest, CPU, m) { m.impl(op, TORCH_BOX(&sparse_conv2d)); }

#ifdef CREST_CUDA
STABLE_TORCH_LIBRARY_IMPL(crest, CUDA, m) { m.impl(op, TORCH_BOX(&sparse_conv2d)); }
#endif

}  // namespace
}  // namespace crest
