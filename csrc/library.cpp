// Every op of torch.ops.crest: the table of contents. An op that writes an argument returns nothing.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(crest, m) {
  m.def("apply_mask(Tensor weight, Tensor mask, bool straight_through=False) -> Tensor");
  m.def("group_norms(Tensor weight, str groups) -> Tensor");
  m.def("group_soft_threshold_(Tensor(a!) weight, str groups, float threshold) -> ()");
  m.def(
      "depthwise_conv2d(Tensor x, Tensor weight, Tensor? bias=None, int[2] stride=1, SymInt[] padding=[0, 0], "
      "int[2] dilation=1, str activation=\"none\") -> Tensor");
  m.def(
      "depthwise_conv2d_grad_x(Tensor grad, Tensor weight, SymInt[3] size, int[2] stride=1, SymInt[] padding=[0, 0], "
      "int[2] dilation=1) -> Tensor");
  m.def(
      "depthwise_conv2d_grad_weight(Tensor grad, Tensor x, int[2] kernel_size, int[2] stride=1, "
      "SymInt[] padding=[0, 0], int[2] dilation=1) -> Tensor");
  m.def(
      "depthwise_conv2d_grads(Tensor grad, Tensor x, Tensor weight, int[2] stride=1, SymInt[] padding=[0, 0], "
      "int[2] dilation=1) -> (Tensor, Tensor)");
  m.def("local_response_norm(Tensor x, int size, float alpha=0.0001, float beta=0.75, float k=1.0) -> Tensor");
  m.def(
      "masked_linear(Tensor x, Tensor weight, Tensor mask, Tensor? bias=None, bool straight_through=False) -> Tensor");
  m.def("masked_linear_grad_x(Tensor grad, Tensor weight, Tensor mask) -> Tensor");
  m.def("masked_linear_grad_weight(Tensor grad, Tensor x, Tensor mask) -> Tensor");
  m.def(
      "max_pool2d(Tensor x, int[2] kernel_size, int[2] stride, int[2] padding=0, int[2] dilation=1, "
      "bool ceil_mode=False) -> Tensor");
  m.def("packed_sequential(Tensor x, Tensor[] tensors, int[] steps) -> Tensor");
  m.def("prune_splice_(Tensor weight, Tensor(a!) mask, float low, float high) -> ()");
  m.def(
      "separable_conv2d(Tensor x, Tensor depthwise, Tensor pointwise, int out_channels, Tensor? depthwise_bias=None, "
      "Tensor? bias=None, int[2] stride=1, SymInt[] padding=[0, 0], int[2] dilation=1, "
      "str depthwise_activation=\"none\", str activation=\"none\") -> Tensor");
  m.def(
      "sgd_prune_splice_(Tensor(a!) weight, Tensor grad, Tensor(b!) momentum_buffer, Tensor(c!) mask, float lr, "
      "float momentum, float weight_decay, float low, float high, bool update_mask=True) -> ()");
  m.def("sparse_group_soft_threshold_(Tensor(a!) weight, str groups, float threshold, float l1) -> ()");
  m.def(
      "sparse_linear(Tensor x, Tensor values, Tensor columns, Tensor rows, Tensor steps, Tensor slices, "
      "int out_features, int in_features, Tensor? bias=None, str activation=\"none\") -> Tensor");
  m.def(
      "sparse_conv2d(Tensor x, Tensor values, Tensor columns, Tensor starts, int[] weight_shape, Tensor? bias=None, "
      "int[2] stride=1, int[2] padding=0, int[2] dilation=1, int groups=1, str activation=\"none\", "
      "Tensor? addend=None) -> Tensor");
  m.def("singular_value_threshold(Tensor a, float threshold) -> Tensor");
  m.def(
      "stem_conv2d(Tensor x, Tensor weight, Tensor? bias=None, int[2] stride=1, SymInt[] padding=[0, 0], "
      "int[2] dilation=1, str activation=\"none\", bool channels_last=True) -> Tensor");
  m.def("truncated_svd(Tensor a, int rank) -> (Tensor, Tensor, Tensor)");
}
