#pragma once
// Images between sparse convolutions, in the planes that these compute on: what one writes is where the next one
// reads, so that nothing is moved from layer to layer.
#include <memory>
#include <optional>
#include <variant>

#include "scratch.h"
#include "sparse_conv2d_call.h"

namespace crest {

class SparsePlanes;
using Images = std::variant<Tensor, SparsePlanes>;

class SparsePlanes {
 public:
  // y = act(conv2d(x, weight) + bias + addend) in planes; none if it gains nothing by them.
  static std::optional<SparsePlanes> convolved(const Images& x, SparseConv2dCall& call, const Images* addend);

  const Tensor& like() const { return like_; }  // of the same dtype and on the same device
  Ints sizes() const;                           // n, c, h, w
  Tensor tensor() const;                        // what the planes hold
  SparsePlanes relu() const;
  SparsePlanes shortcut(const Ints& stride, const Ints& channels) const;
  Tensor max_pool2d(const Window& window) const;

 private:
  struct Frame;  // what depends on the sizes of images alone
  struct Room {
    explicit Room(int64_t numbers) : planes(numbers) {}
    Scratch planes;
    std::optional<Tensor> tensor;  // what they hold, once it was asked for
  };
  SparsePlanes(Tensor like, std::shared_ptr<const Frame> frame, int64_t channels);
  SparsePlanes(const Tensor& x, std::shared_ptr<const Frame> frame);
  SparsePlanes same(SparseConv2dCall& call, const Images* addend) const;
  static SparsePlanes strided(const Tensor& x, SparseConv2dCall& call, ConvPlanes p, const Images* addend);
  void multiply(SparseConv2dCall& call, const ConvPlanes& p, const float* x, const Images* addend);
  float* results() const;  // of the first channel

  Tensor like_;
  std::shared_ptr<const Frame> frame_;
  int64_t channels_;
  std::shared_ptr<Room> room_;
};

Tensor tensor_of(const Images& x);
const Tensor& like_of(const Images& x);  // of its dtype and on its device

// nn.Shortcut: every so many rows and columns, and channels of zeros before and behind.
Images shortcut(const Images& x, const Ints& stride, const Ints& channels);

}  // namespace crest
