// driver CASES RESULTS: runs kernels on the cases that host.py wrote, and writes every array of every case back.
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "../../csrc/cuda/apply_mask.cuh"
#include "../../csrc/cuda/depthwise_conv2d.cuh"
#include "../../csrc/cuda/depthwise_conv2d_grad_weight.cuh"
#include "../../csrc/cuda/group_norms.cuh"
#include "../../csrc/cuda/group_soft_threshold.cuh"
#include "../../csrc/cuda/local_response_norm.cuh"
#include "../../csrc/cuda/masked_linear.cuh"
#include "../../csrc/cuda/masked_linear_grad_weight.cuh"
#include "../../csrc/cuda/masked_linear_grad_x.cuh"
#include "../../csrc/cuda/max_pool2d.cuh"
#include "../../csrc/cuda/prune_splice.cuh"
#include "../../csrc/cuda/separable_conv2d.cuh"
#include "../../csrc/cuda/sgd_prune_splice.cuh"
#include "../../csrc/cuda/sparse_conv2d.cuh"
#include "../../csrc/cuda/sparse_linear.cuh"
#include "../../csrc/cuda/stem_conv2d.cuh"
#include "../../csrc/cuda/truncated_svd.cuh"
#include "planted.cuh"

namespace {

using namespace crest;

// `bytes` from host.py, after `zeros` zero bytes. Memory of exactly the size, so that AddressSanitizer guards its ends;
// but where there are zeros, the system's, which holds pages only once they are touched. bytes -1: a null pointer.
class Array {
 public:
  Array(std::istream& in, int64_t bytes, int64_t zeros, int64_t offset) : bytes_(bytes), zeros_(zeros) {
    if (bytes < 0) return;
    if (zeros > 0)
      memory_ = mmap(nullptr, size(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    else
      memory_ = std::malloc(static_cast<size_t>(bytes + offset));
    if (!memory_ || memory_ == MAP_FAILED) std::abort();
    data_ = static_cast<char*>(memory_) + offset;
    in.read(data_ + zeros, bytes);
  }
  Array(Array&& from) : Array(from) { from.memory_ = nullptr; }
  ~Array() {
    if (memory_) zeros_ > 0 ? void(munmap(memory_, size())) : std::free(memory_);
  }

  void* data() const { return data_; }
  void write(std::ostream& out) const {
    if (data_) out.write(data_ + zeros_, bytes_);
  }

 private:
  Array(const Array&) = default;
  size_t size() const { return static_cast<size_t>(zeros_ + bytes_); }

  void* memory_ = nullptr;
  char* data_ = nullptr;
  int64_t bytes_, zeros_;
};

struct Case {
  std::string op;
  Dtype dtype;
  bool small;  // small blocks and grids instead of the launcher's; float32 and float16 only, to compile faster
  std::vector<int64_t> sizes;
  std::vector<double> numbers;
  std::vector<Array> arrays;

  void* operator[](size_t i) const { return arrays.at(i).data(); }
  bool* mask(size_t i) const { return static_cast<bool*>(arrays.at(i).data()); }

  // launch(Of<T>{}) in small blocks, else the launcher.
  template <class Args, class F>
  void run(const Args& args, void (*launcher)(const Args&, void*), const F& launch) const {
    if (!small) return launcher(args, nullptr);
    dtype == Dtype::float32 ? launch(cuda::Of<float>{}) : launch(cuda::Of<__half>{});
  }
};

#define TYPE typename decltype(type)::type

void apply_mask(const Case& c) {
  const ApplyMask a{c[0], c.mask(1), c[2], c.sizes[0], c.dtype};
  c.run(a, cuda::apply_mask, [&](auto type) { cuda::apply_mask<TYPE, 32>(a, nullptr, 2); });
}

void prune_splice(const Case& c) {
  const PruneSplice a{c[0], c.mask(1), c.sizes[0], c.numbers[0], c.numbers[1], c.dtype};
  c.run(a, cuda::prune_splice, [&](auto type) { cuda::prune_splice<TYPE, 32>(a, nullptr, 2); });
}

void sgd_prune_splice(const Case& c) {
  const auto& x = c.numbers;
  const SgdPruneSplice a{c[0], c[1], c[2], c.mask(3), c.sizes[0], x[0], x[1], x[2], x[3], x[4], x[5] != 0, c.dtype};
  c.run(a, cuda::sgd_prune_splice, [&](auto type) { cuda::sgd_prune_splice<TYPE, 32>(a, nullptr, 2); });
}

// sizes: outer, count, inner.
void group_norms(const Case& c) {
  const GroupNorms a{c[0], c[1], c[2], {c.sizes[0], c.sizes[1], c.sizes[2]}, c.dtype};
  c.run(a, cuda::group_norms, [&](auto type) { cuda::group_norms<TYPE, 64>(a, nullptr); });
}

void group_soft_threshold(const Case& c) {
  const GroupSoftThreshold a{c[0], c[1], {c.sizes[0], c.sizes[1], c.sizes[2]}, c.numbers[0], c.numbers[1], c.dtype};
  c.run(a, cuda::group_soft_threshold, [&](auto type) { cuda::group_soft_threshold<TYPE, 64>(a, nullptr, 2); });
}

// sizes: n, c, positions, before, after. numbers: scale, k.
void local_response_norm(const Case& c) {
  const auto& s = c.sizes;
  const auto floats = [&](size_t i) { return static_cast<float*>(c[i]); };
  const LocalResponseNorm a{floats(0),
                            floats(1),
                            s[0],
                            s[1],
                            s[2],
                            s[3],
                            s[4],
                            static_cast<float>(c.numbers[0]),
                            static_cast<float>(c.numbers[1])};
  c.run(a, cuda::local_response_norm, [&](auto) { cuda::local_response_norm<32>(a, nullptr, 2); });
}

// sizes: those of the struct in its order.
void max_pool2d(const Case& c) {
  const auto& s = c.sizes;
  const auto floats = [&](size_t i) { return static_cast<float*>(c[i]); };
  const MaxPool2d a{floats(0), floats(1), s[0], s[1], s[2],  s[3],  s[4], s[5],
                    s[6],      s[7],      s[8], s[9], s[10], s[11], s[12]};
  c.run(a, cuda::max_pool2d, [&](auto) { cuda::max_pool2d<32>(a, nullptr, 2); });
}

void masked_linear(const Case& c) {
  const MaskedLinear a{c[0], c[1], c.mask(2), c[3], c[4], c.sizes[0], c.sizes[1], c.sizes[2], c.dtype};
  c.run(a, cuda::masked_linear, [&](auto type) { cuda::masked_linear<TYPE, 64, 8, 16, 3>(a, nullptr); });
}

void masked_linear_grad_x(const Case& c) {
  const MaskedLinearGradX a{c[0], c[1], c.mask(2), c[3], c.sizes[0], c.sizes[1], c.sizes[2], c.dtype};
  c.run(a, cuda::masked_linear_grad_x, [&](auto type) { cuda::masked_linear_grad_x<TYPE, 16, 8, 2>(a, nullptr); });
}

void masked_linear_grad_weight(const Case& c) {
  const MaskedLinearGradWeight a{c[0], c[1], c.mask(2), c[3], c.sizes[0], c.sizes[1], c.sizes[2], c.dtype};
  c.run(a, cuda::masked_linear_grad_weight,
        [&](auto type) { cuda::masked_linear_grad_weight<TYPE, 8, 16, 32>(a, nullptr); });
}

// sizes: n, m, k, blocks, block_rows, tiles, activation.
void sparse_linear(const Case& c) {
  const auto& s = c.sizes;
  const SparseLinear a{static_cast<float*>(c[0]),
                       c[1],
                       static_cast<uint8_t*>(c[2]),
                       static_cast<uint8_t*>(c[3]),
                       static_cast<int32_t*>(c[4]),
                       static_cast<int32_t*>(c[5]),
                       static_cast<float*>(c[6]),
                       static_cast<float*>(c[7]),
                       s[0],
                       s[1],
                       s[2],
                       s[3],
                       s[4],
                       s[5],
                       static_cast<Activation>(s[6]),
                       c.dtype};
  c.run(a, cuda::sparse_linear, [&](auto type) { cuda::sparse_linear<TYPE, 64, 2>(a, nullptr); });
}

// sizes: those of the struct in its order, then flip, channels_last and activation.
DepthwiseConv2d depthwise(const Case& c, void* y) {
  const auto& s = c.sizes;
  return {c[0],   c[1],  c[2],  y,     s[0],  s[1],       s[2],       s[3],
          s[4],   s[5],  s[6],  s[7],  s[8],  s[9],       s[10],      s[11],
          s[12],  s[13], s[14], s[15], s[16], s[17] != 0, s[18] != 0, static_cast<Activation>(s[19]),
          c.dtype};
}

void depthwise_conv2d(const Case& c) {
  const DepthwiseConv2d a = depthwise(c, c[3]);
  c.run(a, cuda::depthwise_conv2d, [&](auto type) { cuda::depthwise_conv2d<TYPE, 32>(a, nullptr); });
}

// sizes: those of the struct in its order, then channels_last.
void depthwise_conv2d_grad_weight(const Case& c) {
  const auto& s = c.sizes;
  const DepthwiseConv2dGradWeight a{c[0], c[1], c[2], s[0],  s[1],  s[2],  s[3],  s[4],  s[5],       s[6],
                                    s[7], s[8], s[9], s[10], s[11], s[12], s[13], s[14], s[15] != 0, c.dtype};
  c.run(a, cuda::depthwise_conv2d_grad_weight,
        [&](auto type) { cuda::depthwise_conv2d_grad_weight<TYPE, 32>(a, nullptr); });
}

// sizes: those of the depthwise convolution, then m, activation and rows.
void separable_conv2d(const Case& c) {
  const auto& s = c.sizes;
  const auto floats = [&](size_t i) { return static_cast<float*>(c[i]); };
  const SeparableConv2d a{depthwise(c, nullptr),          floats(3), floats(4), floats(5), s[20],
                          static_cast<Activation>(s[21]), s[22]};
  c.run(a, cuda::separable_conv2d, [&](auto) { cuda::separable_conv2d<8, 8, 4>(a, nullptr); });
}

// sizes: those of the struct in its order, then activation.
void stem_conv2d(const Case& c) {
  const auto& s = c.sizes;
  const auto floats = [&](size_t i) { return static_cast<float*>(c[i]); };
  const StemConv2d a{floats(0), floats(1), floats(2), floats(3),  s[0],
                     s[1],      s[2],      s[3],      s[4],       s[5],
                     s[6],      s[7],      s[8],      s[9],       s[10],
                     s[11],     s[12],     s[13],     s[14],      s[15],
                     s[16],     s[17],     s[18],     s[19] != 0, static_cast<Activation>(s[20])};
  c.run(a, cuda::stem_conv2d, [&](auto) { cuda::stem_conv2d<32>(a, nullptr); });
}

// sizes: n, c, h, w, m, oh, ow, kh, kw, then two each of stride, padding and dilation, groups, activation.
void sparse_conv2d(const Case& c) {
  const auto& s = c.sizes;
  SparseConv2d a{static_cast<float*>(c[0]),
                 c[1],
                 static_cast<uint8_t*>(c[2]),
                 static_cast<int32_t*>(c[3]),
                 static_cast<float*>(c[4]),
                 static_cast<float*>(c[5]),
                 s[0],
                 s[1],
                 s[2],
                 s[3],
                 s[4],
                 s[5],
                 s[6],
                 s[7],
                 s[8],
                 {s[9], s[10]},
                 {s[11], s[12]},
                 {s[13], s[14]},
                 s[15],
                 static_cast<Activation>(s[16]),
                 c.dtype,
                 static_cast<float*>(c[6])};
  c.run(a, cuda::sparse_conv2d, [&](auto type) { cuda::sparse_conv2d<TYPE, 32>(a, nullptr); });
}

// sizes: n, r, c, k, and after how many sweeps the small blocks give up.
void truncated_svd(const Case& c) {
  const auto& s = c.sizes;
  const TruncatedSvd a{c[0], c[1], c[2], c[3], nullptr, static_cast<Search*>(c[4]),
                       s[0], s[1], s[2], s[3], c.dtype, c[5]};
  c.run(a, cuda::truncated_svd,
        [&](auto) { cuda::truncated_svd<float, 64, 16, 64, 400>(a, nullptr, 2, static_cast<int>(s[4])); });
}

// sizes: threads a block, blocks.
template <auto kernel>
void plant(const Case& c) {
  cuda::launch("planted", kernel, c.sizes[1], static_cast<int>(c.sizes[0]), nullptr, static_cast<float*>(c[0]),
               c.sizes[0]);
}

#define NAMED(function) {#function, function}
#define PLANTED(kernel) {#kernel, plant<planted::kernel>}
const std::map<std::string, void (*)(const Case&)> ops = {
    NAMED(apply_mask),
    NAMED(prune_splice),
    NAMED(sgd_prune_splice),
    NAMED(group_norms),
    NAMED(group_soft_threshold),
    NAMED(local_response_norm),
    NAMED(masked_linear),
    NAMED(masked_linear_grad_x),
    NAMED(masked_linear_grad_weight),
    NAMED(max_pool2d),
    NAMED(sparse_linear),
    NAMED(depthwise_conv2d),
    NAMED(depthwise_conv2d_grad_weight),
    NAMED(separable_conv2d),
    NAMED(sparse_conv2d),
    NAMED(stem_conv2d),
    NAMED(truncated_svd),
    PLANTED(global_out_of_bounds),
    PLANTED(shared_out_of_bounds),
    PLANTED(misaligned),
    PLANTED(not_initialised),
    PLANTED(read_without_barrier),
    PLANTED(rewrite_without_barrier),
    PLANTED(count_without_atomic),
    PLANTED(blocks_collide),
    PLANTED(divergent_barrier),
    PLANTED(barrier_not_reached),
    PLANTED(lane_not_there),
    PLANTED(faultless),
};

template <class T>
std::vector<T> read_list(std::istream& in) {
  size_t n;
  in >> n;
  std::vector<T> list(n);
  for (T& x : list) in >> x;
  return list;
}

// op dtype small order last_only, sizes, numbers, of each array the bytes, the zeros before them and the distance from
// 16-byte alignment; a newline; the arrays.
bool read_case(std::istream& in, Case& c) {
  int dtype;
  if (!(in >> c.op >> dtype >> c.small >> cuda_host::thread_order >> cuda_host::last_block_only)) return false;
  c.dtype = static_cast<Dtype>(dtype);
  c.sizes = read_list<int64_t>(in);
  c.numbers = read_list<double>(in);
  const auto bytes = read_list<int64_t>(in), zeros = read_list<int64_t>(in), offsets = read_list<int64_t>(in);
  in.ignore();
  for (size_t i = 0; i < bytes.size(); ++i) c.arrays.emplace_back(in, bytes[i], zeros[i], offsets[i]);
  return true;
}

}  // namespace

int main(int, char** argv) {
  std::ifstream in(argv[1], std::ios::binary);
  std::ofstream out(argv[2], std::ios::binary);
  for (Case c; read_case(in, c); c = {}) {
    ops.at(c.op)(c);
    for (const Array& a : c.arrays) a.write(out);
  }
  return in.eof() && out.good() ? 0 : 1;
}
