#include "group_norms.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <string>
#include <vector>

#include "aten.h"
#include "check_groups.h"
#include "cuda_device.h"
#include "group_sums.h"
#include "text.h"

namespace crest {
namespace {

constexpr const char* op = "group_norms";

// The sizes of the dimensions that tell groups apart.
std::vector<int64_t> shape_of_norms(const Tensor& weight, const std::string& groups) {
  const std::vector<int64_t> sizes(weight.sizes().begin(), weight.sizes().end());
  if (groups == "filter" || groups == "row") return {sizes[0]};
  if (groups == "channel") return {sizes[1]};
  if (groups == "kernel") return {sizes[0], sizes[1]};
  if (groups == "layer") return {};
  return {sizes.begin() + 1, sizes.end()};
}

template <auto run>
Tensor group_norms(const Tensor& weight, const Text& name) {
  const Groups groups = check_groups(op, weight, name);
  const Dtype dtype = check_floating(op, "weight", weight);

  const Tensor w = torch::stable::contiguous(weight);
  Tensor norms = aten::empty(w, shape_of_norms(w, name));
  if (norms.numel() > 0) run(GroupNorms{w.const_data_ptr(), norms.mutable_data_ptr(), nullptr, groups, dtype}, w);
  return norms;
}

void on_cpu(GroupNorms args, const Tensor& weight) {
  const Groups& groups = args.groups;
  if (groups.outer == 1) {
    const auto kernel = CREST_KERNEL(group_norms);
    const int64_t grain = std::max<int64_t>(1, (1 << 15) / (groups.inner + 1));
    torch::stable::parallel_for(0, groups.count, grain, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
    return;
  }
  const Tensor sums = new_group_sums(weight, groups.blocks() * groups.width());
  args.sums = sums.mutable_data_ptr();
  const auto kernel = CREST_KERNEL(group_norms_sums);
  torch::stable::parallel_for(0, groups.blocks(), 1, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
  CREST_KERNEL(group_norms_of_sums)(args);
}

STABLE_TORCH_LIBRARY_IMPL(crest, CPU, m) { m.impl(op, TORCH_BOX(&group_norms<on_cpu>)); }

#ifdef CREST_CUDA
void on_cuda(GroupNorms args, const Tensor& weight) {
  const CudaDevice device(weight);
  const Tensor sums = new_group_sums(weight, args.groups.blocks() * args.groups.cells());
  args.sums = sums.mutable_data_ptr();
  cuda::group_norms(args, device.stream());
}

STABLE_TORCH_LIBRARY_IMPL(crest, CUDA, m) { m.impl(op, TORCH_BOX(&group_norms<on_cuda>)); }
#endif

}  // namespace
}  // namespace crest
