#include "group_soft_threshold.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>

#include "check_groups.h"
#include "cuda_device.h"
#include "group_sums.h"
#include "text.h"

namespace crest {
namespace {

void check_threshold(const char* op, const char* arg, double value) {
  CREST_CHECK(std::isfinite(value) && value >= 0, op, ": ", arg, " must be a finite number >= 0, got ", value);
}

template <auto run>
void shrink(const char* op, const Tensor& weight, const std::string& name, double threshold, double l1) {
  const Groups groups = check_groups(op, weight, name);
  const Dtype dtype = check_floating(op, "weight", weight);
  check_contiguous(op, "weight", weight);
  check_threshold(op, "threshold", threshold);
  check_threshold(op, "l1", l1);
  if (weight.numel() > 0)
    run(GroupSoftThreshold{weight.mutable_data_ptr(), nullptr, groups, threshold, l1, dtype}, weight);
}

template <auto run>
void group_soft_threshold(const Tensor& weight, const Text& groups, double threshold) {
  shrink<run>("group_soft_threshold_", weight, groups, threshold, 0);
}

template <auto run>
void sparse_group_soft_threshold(const Tensor& weight, const Text& groups, double threshold, double l1) {
  shrink<run>("sparse_group_soft_threshold_", weight, groups, threshold, l1);
}

void on_cpu(GroupSoftThreshold args, const Tensor& weight) {
  const Groups& groups = args.groups;
  constexpr int64_t grain = 1 << 15;  // numbers
  if (groups.outer == 1) {
    const auto kernel = CREST_KERNEL(group_soft_threshold);
    torch::stable::parallel_for(0, groups.count, std::max<int64_t>(1, grain / groups.inner),
                                [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
    return;
  }
  const Tensor sums = new_group_sums(weight, groups.blocks() * groups.width());
  args.sums = sums.mutable_data_ptr();
  const auto sum = CREST_KERNEL(group_soft_threshold_sums), scale = CREST_KERNEL(group_soft_threshold_rows);
  torch::stable::parallel_for(0, groups.blocks(), 1, [&](int64_t begin, int64_t end) { sum(args, begin, end); });
  CREST_KERNEL(group_soft_threshold_factors)(args);
  torch::stable::parallel_for(0, groups.outer, std::max<int64_t>(1, grain / groups.width()),
                              [&](int64_t begin, int64_t end) { scale(args, begin, end); });
}

STABLE_TORCH_LIBRARY_IMPL(crest, CPU, m) {
  m.impl("group_soft_threshold_", TORCH_BOX(&group_soft_threshold<on_cpu>));
  m.impl("sparse_group_soft_threshold_", TORCH_BOX(&sparse_group_soft_threshold<on_cpu>));
}

#ifdef CREST_CUDA
void on_cuda(GroupSoftThreshold args, const Tensor& weight) {
  const CudaDevice device(weight);
  const Tensor sums = new_group_sums(weight, (args.groups.blocks() + 1) * args.groups.cells());
  args.sums = sums.mutable_data_ptr();
  cuda::group_soft_threshold(args, device.stream());
}

STABLE_TORCH_LIBRARY_IMPL(crest, CUDA, m) {
  m.impl("group_soft_threshold_", TORCH_BOX(&group_soft_threshold<on_cuda>));
  m.impl("sparse_group_soft_threshold_", TORCH_BOX(&sparse_group_soft_threshold<on_cuda>));
}
#endif

}  // namespace
}  // namespace crest
