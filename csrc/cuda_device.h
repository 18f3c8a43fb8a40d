#pragma once
// Makes a tensor's device current, and names its stream.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>

// Lives in libtorch_cuda. Weak, so that a CUDA build also loads under a CPU-only torch. Gone once the oldest torch
// we support has Stream::nativeHandle (2.13).
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void**);

namespace crest {

class CudaDevice {
 public:
  explicit CudaDevice(const torch::stable::Tensor& t) : index_(t.get_device_index()), guard_(index_) {}

  void* stream() const {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index_, &stream));
    return stream;
  }

 private:
  int32_t index_;
  torch::stable::accelerator::DeviceGuard guard_;
};

}  // namespace crest
