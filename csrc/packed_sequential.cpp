#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "aten.h"
#include "conv_host.h"
#include "inference.h"
#include "sparse_planes.h"

namespace crest {
namespace {

constexpr const char* op = "packed_sequential";
constexpr int64_t max_pool = 2;  // a layer's kind

Ints sizes_of(const Images& x) {
  const auto* planes = std::get_if<SparsePlanes>(&x);
  return planes ? planes->sizes() : crest::sizes_of(std::get<Tensor>(x));
}

// The tensors and numbers of the layers, each taken once and in order.
class Steps {
 public:
  Steps(const std::vector<Tensor>& tensors, const Ints& numbers) : tensors_(tensors), numbers_(numbers) {}

  bool left() const { return number_ < numbers_.size(); }
  bool next_is(int64_t kind) const { return left() && numbers_[number_] == kind; }
  int64_t number() { return *take(1); }
  Ints numbers(size_t count) {
    const int64_t* list = take(count);
    return {list, list + count};
  }
  const Tensor& tensor() {
    CREST_CHECK(tensor_ < tensors_.size(), op, ": tensors must be as many as steps take, got ", tensors_.size());
    return tensors_[tensor_++];
  }
  // One that the op sees after its sizes are asked for.
  const Tensor& weight(int64_t dims) {
    const Tensor& w = tensor();
    CREST_CHECK(w.dim() == dims, op, ": a weight must have ", dims, " dimensions, got ", Shape{w});
    return w;
  }
  std::optional<Tensor> bias() { return number() ? std::optional<Tensor>(tensor()) : std::nullopt; }
  Text activation() {
    const int64_t which = number();
    CREST_CHECK(0 <= which && which <= 2, op, ": an activation among steps must be 0, 1 or 2, got ", which);
    return which == 0 ? "none" : which == 1 ? "relu" : "relu6";
  }
  // What is kept for a later step: for it to begin with, or to add.
  void keep(const Images& y) { kept_.push_back(y); }
  Images& kept() {
    CREST_CHECK(!kept_.empty(), op, ": steps must keep what they swap or add, got none");
    return kept_.back();
  }
  std::optional<Images> addend() {
    if (!number()) return std::nullopt;
    std::optional<Images> top(std::move(kept()));
    kept_.pop_back();
    return top;
  }
  void finish() const {
    CREST_CHECK(tensor_ == tensors_.size(), op, ": tensors must be as many as steps take, ", tensor_, ", got ",
                tensors_.size());
    CREST_CHECK(kept_.empty(), op, ": steps must add what they keep, got ", kept_.size(), " more");
  }

 private:
  const int64_t* take(size_t count) {
    CREST_CHECK(count <= numbers_.size() - number_, op, ": steps must end with a layer, got ", numbers_.size(),
                " numbers, which is within one");
    number_ += count;
    return numbers_.data() + number_ - count;
  }

  const std::vector<Tensor>& tensors_;
  const Ints& numbers_;
  std::vector<Images> kept_;
  size_t tensor_ = 0, number_ = 0;
};

// Where a dense convolution of x by a kernel looks.
struct Where {
  Ints stride, padding, dilation;

  Where(Steps& steps, const Tensor& x, int64_t kh, int64_t kw)
      : stride(steps.numbers(2)), padding(steps.numbers(4)), dilation(steps.numbers(2)) {
    if (padding == Ints(4, -1) && x.dim() == 4 && stride[0] > 0 && stride[1] > 0)
      padding = same_padding({x.size(2), x.size(3)}, {kh, kw}, stride, dilation);
  }
};

Window window(Steps& steps) {
  return {steps.numbers(2), steps.numbers(2), steps.numbers(2), steps.numbers(2), steps.number() != 0};
}

Images convolution(const Images& x, SparseConv2dCall call, Steps& steps) {
  const auto addend = steps.addend();
  if (addend) call.check_addend(like_of(x), like_of(*addend), sizes_of(*addend));
  if (auto planes = SparsePlanes::convolved(x, call, addend ? &*addend : nullptr)) return *std::move(planes);
  if (!addend && steps.next_is(max_pool) && call.a.kh * call.a.kw > 1 && !like_of(x).is_cuda()) {
    steps.number();
    return run_pooled_sparse_conv2d(tensor_of(x), std::move(call), window(steps));
  }
  return run_sparse_conv2d(tensor_of(x), std::move(call), addend ? std::optional(tensor_of(*addend)) : std::nullopt);
}

// A layer by its numbers: crest_ext/ops/packed_sequential.py says which, nn.PackedSequential writes them.
Images layer(const Images& given, Steps& steps) {
  const int64_t kind = steps.number();
  switch (kind) {
    case 0:
      if (const auto* planes = std::get_if<SparsePlanes>(&given)) return planes->relu();
      return aten::relu(std::get<Tensor>(given));
    case max_pool: {
      const Window by = window(steps);
      if (const auto* planes = std::get_if<SparsePlanes>(&given)) return planes->max_pool2d(by);
      return max_pool2d(std::get<Tensor>(given), by.kernel, by.stride, by.padding, by.dilation, by.ceil_mode);
    }
    case 4: {
      const Ints shape = steps.numbers(4), stride = steps.numbers(2), padding = steps.numbers(2),
                 dilation = steps.numbers(2);
      const int64_t groups = steps.number();
      const Tensor &values = steps.tensor(), &columns = steps.tensor(), &starts = steps.tensor();
      const auto bias = steps.bias();
      const Text activation = steps.activation();
      const Ints sizes = sizes_of(given);
      CREST_CHECK(sizes.size() == 4, "sparse_conv2d: x must have 4 dimensions, got ", List{sizes});
      SparseConv2dCall call(like_of(given), sizes, values, columns, starts, shape, bias, stride, padding, dilation,
                            groups, activation);
      return convolution(given, std::move(call), steps);
    }
    case 8: steps.keep(given); return given;
    case 9: {
      Images before = steps.kept();
      steps.kept() = given;
      return before;
    }
    case 10: {
      const Ints stride = steps.numbers(2), channels = steps.numbers(2);
      return shortcut(given, stride, channels);
    }
    default: break;
  }
  const Tensor x = tensor_of(given);
  switch (kind) {
    case 1: {
      const Ints dims = steps.numbers(2);
      return torch::stable::flatten(x, dims[0], dims[1]);
    }
    case 3: {
      const Ints size = steps.numbers(2);
      const Tensor &values = steps.tensor(), &columns = steps.tensor(), &rows = steps.tensor(), &ends = steps.tensor(),
                   &slices = steps.tensor();
      const auto bias = steps.bias();
      return sparse_linear(x, values, columns, rows, ends, slices, size[0], size[1], bias, steps.activation());
    }
    case 5: {
      const Tensor& weight = steps.weight(4);
      const Where at(steps, x, weight.size(2), weight.size(3));
      const auto bias = steps.bias();
      return depthwise_conv2d(x, weight, bias, at.stride, at.padding, at.dilation, steps.activation());
    }
    case 6: {
      const int64_t m = steps.number();
      const Tensor &depthwise = steps.weight(3), &pointwise = steps.tensor();
      const Where at(steps, x, depthwise.size(0), depthwise.size(1));
      const auto depthwise_bias = steps.bias(), bias = steps.bias();
      const Text inner = steps.activation();
      return separable_conv2d(x, depthwise, pointwise, m, depthwise_bias, bias, at.stride, at.padding, at.dilation,
                              inner, steps.activation());
    }
    case 7: {
      const Tensor& weight = steps.weight(4);
      const Where at(steps, x, weight.size(2), weight.size(3));
      const auto bias = steps.bias();
      const Text activation = steps.activation();
      return stem_conv2d(x, weight, bias, at.stride, at.padding, at.dilation, activation, steps.number());
    }
    case 11: {
      CREST_CHECK(x.dim() == 4, op, ": the mean must be of 4 dimensions, got ", Shape{x});
      return aten::mean(x, steps.number() != 0);
    }
    case 12: {
      const Tensor& weight = steps.tensor();
      return aten::linear(x, weight, steps.bias());
    }
    default: fail(op, ": steps must begin a layer with a kind from 0 to 12, got ", kind);
  }
}

Tensor packed_sequential(const Tensor& x, const std::vector<Tensor>& tensors, const Ints& numbers) {
  CREST_CHECK(!numbers.empty(), op, ": steps must have a layer, got none");
  Steps steps(tensors, numbers);
  Images result = x;
  while (steps.left()) result = layer(result, steps);
  steps.finish();
  const Tensor y = tensor_of(result);
  // A result is memory of its own, which nothing but flattening would not be.
  return y.const_data_ptr() == x.const_data_ptr() ? torch::stable::clone(y) : y;
}

STABLE_TORCH_LIBRARY_IMPL(crest, CPU, m) { m.impl(op, TORCH_BOX(&packed_sequential)); }

#ifdef CREST_CUDA
STABLE_TORCH_LIBRARY_IMPL(crest, CUDA, m) { m.impl(op, TORCH_BOX(&packed_sequential)); }
#endif

}  // namespace
}  // namespace crest
