#include "sparse_planes.h"

#include <algorithm>
#include <vector>

#include "aten.h"
#include "sparse_conv2d_work.h"

namespace crest {
namespace {

bool keeps_size(const SparseConv2d& a) { return a.stride[0] == 1 && a.stride[1] == 1 && a.oh == a.h && a.ow == a.w; }

// Whether to move what a convolution of 1x1 adds to planes, or what it gives out of them, is no more than its x.
bool stays(const SparseConv2d& a, const Images* addend) {
  if (a.kh * a.kw > 1) return true;
  return addend ? std::holds_alternative<SparsePlanes>(*addend) : a.m <= a.c;
}

int64_t margin_of(const SparseConv2d& a) { return std::max(a.padding[0], a.padding[1]); }

}  // namespace

Tensor tensor_of(const Images& x) {
  const auto* planes = std::get_if<SparsePlanes>(&x);
  return planes ? planes->tensor() : std::get<Tensor>(x);
}

const Tensor& like_of(const Images& x) {
  const auto* planes = std::get_if<SparsePlanes>(&x);
  return planes ? planes->like() : std::get<Tensor>(x);
}

struct SparsePlanes::Frame {
  SparseConv2d images;
  ConvPlanes planes;
  int64_t margin;
  Isa isa;
  std::unique_ptr<bool[]> kept;

  Frame(int64_t n, int64_t h, int64_t w, int64_t zeros)
      : images(copy_of_images(n, h, w)), planes{}, margin(zeros), isa(active_isa()) {
    CREST_KERNEL(sparse_planes_plan)(images, margin, planes);
    kept.reset(new bool[static_cast<size_t>(planes.x_plane - 2 * planes.edge)]);
    CREST_KERNEL(sparse_planes_kept)(images, planes, kept.get());
  }

  // Those of the last networks are kept: to make one takes as long as a small layer.
  static std::shared_ptr<const Frame> of(int64_t n, int64_t h, int64_t w, int64_t margin) {
    thread_local std::vector<std::shared_ptr<const Frame>> made;
    for (const auto& f : made)
      if (f->images.n == n && f->images.h == h && f->images.w == w && f->margin == margin && f->isa == active_isa())
        return f;
    if (made.size() == 8) made.erase(made.begin());
    made.push_back(std::make_shared<const Frame>(n, h, w, margin));
    return made.back();
  }
};

std::optional<SparsePlanes> SparsePlanes::convolved(const Images& x, SparseConv2dCall& call, const Images* addend) {
  const SparseConv2d& a = call.a;
  const auto* planes = std::get_if<SparsePlanes>(&x);
  if (planes && keeps_size(a) && margin_of(a) <= planes->frame_->margin && stays(a, addend))
    return planes->same(call, addend);
  if (a.kh * a.kw == 1 || a.n * a.oh * a.ow == 0 || like_of(x).is_cuda()) return std::nullopt;
  ConvPlanes p;
  CREST_KERNEL(sparse_conv2d_plan)(a, p);
  if (!p.neighbours || room_for_planes(a, p) > cached_numbers) return std::nullopt;
  const Tensor tensor = tensor_of(x);
  if (keeps_size(a)) return SparsePlanes(tensor, Frame::of(a.n, a.h, a.w, margin_of(a))).same(call, addend);
  // Its results lie as planes do that are passed on, if there are as many zeros to have right of them as below. With
  // more padding than the kernel looks beyond a row, there are none: the ends of rows are the beginnings of others.
  if (p.qw <= a.ow || p.qw - a.ow != p.qh - a.oh) return std::nullopt;
  return strided(tensor, call, p, addend);
}

SparsePlanes::SparsePlanes(Tensor like, std::shared_ptr<const Frame> frame, int64_t channels)
    : like_(std::move(like)),
      frame_(std::move(frame)),
      channels_(channels),
      room_(std::make_shared<Room>(channels * frame_->planes.x_plane)) {
  const ConvPlanes& p = frame_->planes;
  for (int64_t channel = 0; channel < channels; ++channel) {
    float* plane = room_->planes.data() + channel * p.x_plane;
    std::fill_n(plane, p.edge, 0.0f);
    std::fill_n(plane + p.x_plane - p.edge, p.edge, 0.0f);
  }
}

SparsePlanes::SparsePlanes(const Tensor& x, std::shared_ptr<const Frame> frame)
    : SparsePlanes(x, std::move(frame), x.size(1)) {
  const Tensor in = in_format(x, false);
  SparseConv2d a = frame_->images;
  a.c = channels_, a.x = in.const_data_ptr<float>();
  pack_planes(a, frame_->planes, results());
}

float* SparsePlanes::results() const { return room_->planes.data() + frame_->planes.edge; }

Ints SparsePlanes::sizes() const { return {frame_->images.n, channels_, frame_->images.h, frame_->images.w}; }

Tensor SparsePlanes::tensor() const {
  if (room_->tensor) return *room_->tensor;
  SparseConv2d a = frame_->images;
  a.m = channels_;
  Tensor y = aten::empty(like_, sizes());
  a.y = y.mutable_data_ptr<float>();
  unpack_planes(a, frame_->planes, results());
  room_->tensor = y;
  return y;
}

SparsePlanes SparsePlanes::relu() const {
  SparsePlanes y(like_, frame_, channels_);
  const float* x = room_->planes.data();
  std::transform(x, x + channels_ * frame_->planes.x_plane, y.room_->planes.data(),
                 [](float v) { return v < 0 ? 0 : v; });
  return y;
}

// To planes as wide apart: a convolution of 1x1 with that stride looks at what it is made of, and nothing more.
SparsePlanes SparsePlanes::shortcut(const Ints& stride, const Ints& channels) const {
  const Tensor x = tensor();
  SparseConv2d a = frame_->images;
  for (size_t i = 0; i < 2; ++i) a.stride[i] = stride[i];
  a.c = channels_, a.x = x.const_data_ptr<float>();
  a.oh = (a.h + stride[0] - 1) / stride[0], a.ow = (a.w + stride[1] - 1) / stride[1];
  SparsePlanes y(like_, Frame::of(a.n, a.oh, a.ow, frame_->margin), channels[0] + channels_ + channels[1]);
  const ConvPlanes& p = y.frame_->planes;
  float* const to = y.room_->planes.data();
  std::fill_n(to, channels[0] * p.x_plane, 0.0f);
  std::fill_n(to + (channels[0] + channels_) * p.x_plane, channels[1] * p.x_plane, 0.0f);
  pack_planes(a, p, y.results() + channels[0] * p.x_plane);
  return y;
}

Tensor SparsePlanes::max_pool2d(const Window& window) const {
  MaxPool2d a = check_max_pool2d(like_, sizes(), window);
  const ConvPlanes& p = frame_->planes;
  Tensor y = aten::empty(like_, {frame_->images.n, channels_, a.out_h, a.out_w});
  a.x = results(), a.y = y.mutable_data_ptr<float>();
  a.channels = channels_, a.x_row = p.qw, a.x_plane = p.x_plane, a.x_image = p.qh * p.qw;
  max_pool2d_on_cpu(a);
  return y;
}

SparsePlanes SparsePlanes::same(SparseConv2dCall& call, const Images* addend) const {
  SparsePlanes y(like_, frame_, call.a.m);
  ConvPlanes p = frame_->planes;
  CREST_KERNEL(sparse_planes_tiles)(call.a, p);
  y.multiply(call, p, results(), addend);
  return y;
}

SparsePlanes SparsePlanes::strided(const Tensor& x, SparseConv2dCall& call, ConvPlanes p, const Images* addend) {
  SparseConv2d& a = call.a;
  SparsePlanes y(x, Frame::of(a.n, a.oh, a.ow, p.qw - a.ow), a.m);
  const Tensor in = in_format(x, false);
  Scratch planes(a.c * p.phases[0] * p.phases[1] * p.x_plane);
  a.x = in.const_data_ptr<float>();
  pack_planes(a, p, planes.data());
  p.y_plane = y.frame_->planes.y_plane, p.in_place = true;
  y.multiply(call, p, planes.data(), addend);
  return y;
}

void SparsePlanes::multiply(SparseConv2dCall& call, const ConvPlanes& p, const float* x, const Images* addend) {
  std::optional<SparsePlanes> more;
  if (addend) {
    if (const auto* planes = std::get_if<SparsePlanes>(addend); planes && planes->frame_ == frame_)
      more = *planes;
    else
      more = SparsePlanes(tensor_of(*addend), frame_);
  }
  call.a.y = results(), call.a.addend = more ? more->results() : nullptr;
  multiply_planes(call.a, p, x, call.a.y, frame_->kept.get());
}

}  // namespace crest
