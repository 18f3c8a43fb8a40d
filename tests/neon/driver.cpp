// driver CASES RESULTS: calls the CPU kernels of one instruction set on the cases that tests/driver.py wrote, and
// writes every array of every case back. Each call is cut in two at an odd place, as parallel_for might.
#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "../../csrc/apply_mask.h"
#include "../../csrc/depthwise_conv2d.h"
#include "../../csrc/depthwise_conv2d_grad_weight.h"
#include "../../csrc/group_norms.h"
#include "../../csrc/group_soft_threshold.h"
#include "../../csrc/local_response_norm.h"
#include "../../csrc/masked_linear.h"
#include "../../csrc/masked_linear_grad_weight.h"
#include "../../csrc/masked_linear_grad_x.h"
#include "../../csrc/max_pool2d.h"
#include "../../csrc/prune_splice.h"
#include "../../csrc/separable_conv2d.h"
#include "../../csrc/sgd_prune_splice.h"
#include "../../csrc/singular_value_threshold.h"
#include "../../csrc/sparse_conv2d_work.h"
#include "../../csrc/sparse_linear.h"
#include "../../csrc/stem_conv2d.h"
#include "../../csrc/work.h"

namespace {

using namespace crest;
using namespace crest::CREST_ISA;

struct Case {
  std::string op;
  Dtype dtype;
  std::vector<int64_t> sizes;
  std::vector<double> numbers;
  std::vector<char*> arrays;
  std::vector<int64_t> bytes;

  char* operator[](size_t i) const { return arrays.at(i); }
  bool* mask(size_t i) const { return reinterpret_cast<bool*>(arrays.at(i)); }
};

template <class Args>
void in_two(void (*kernel)(const Args&, int64_t, int64_t), const Args& args, int64_t end) {
  const int64_t cut = end / 3;
  kernel(args, 0, cut);
  kernel(args, cut, end);
}

// sizes: n, m, k, blocks, block_rows, tiles, activation, numbers in the panels.
void sparse(const Case& c) {
  const auto& s = c.sizes;
  const auto bytes = [&](size_t i) { return reinterpret_cast<uint8_t*>(c[i]); };
  const auto ints = [&](size_t i) { return reinterpret_cast<int32_t*>(c[i]); };
  const auto floats = [&](size_t i) { return reinterpret_cast<float*>(c[i]); };
  const SparseLinear a{floats(0), c[1],      bytes(2),  bytes(3), ints(4),
                       ints(5),   floats(6), floats(7), s[0],     s[1],
                       s[2],      s[3],      s[4],      s[5],     static_cast<Activation>(s[6]),
                       c.dtype};
  const int64_t steps = c.bytes.at(2) / slice_rows + 1;
  if (a.n <= few_rows_of_x) return in_two<SparseLinear>(sparse_linear_few, a, steps);
  std::vector<float> panels(static_cast<size_t>(s[7]));
  sparse_linear_pack(a, panels.data(), 0, a.k / 3);
  sparse_linear_pack(a, panels.data(), a.k / 3, a.k);
  sparse_linear_panels(a, panels.data(), 0, steps / 3);
  sparse_linear_panels(a, panels.data(), steps / 3, steps);
}

template <class F>
void in_two(int64_t end, const F& f) {
  f(0, end / 3);
  f(end / 3, end);
}

// sizes: outer, count, inner.
void norms(const Case& c) {
  const Groups groups{c.sizes[0], c.sizes[1], c.sizes[2]};
  std::vector<double> sums(static_cast<size_t>(groups.blocks() * groups.width()));
  const GroupNorms a{c[0], c[1], sums.data(), groups, c.dtype};
  if (groups.outer == 1) return in_two<GroupNorms>(group_norms, a, groups.count);
  in_two<GroupNorms>(group_norms_sums, a, groups.blocks());
  group_norms_of_sums(a);
}

// sizes: n, r, c, most.
void low_rank(const Case& c) {
  const auto& s = c.sizes;
  std::vector<Search> state(static_cast<size_t>(s[0]), Search::not_found);
  const SingularValueThreshold a{c[0], c[1], nullptr, state.data(), c.numbers[0], s[0], s[1], s[2], s[3], c.dtype};
  singular_value_threshold(a, Work(search_work(a.r, a.c, a.most)).data(), 0, a.n);
  for (const Search found : state)
    if (found != Search::found) throw std::runtime_error("singular_value_threshold: not found");
}

void soft_threshold(const Case& c) {
  const Groups groups{c.sizes[0], c.sizes[1], c.sizes[2]};
  std::vector<double> sums(static_cast<size_t>(groups.blocks() * groups.width()));
  const GroupSoftThreshold a{c[0], sums.data(), groups, c.numbers[0], c.numbers[1], c.dtype};
  if (groups.outer == 1) return in_two<GroupSoftThreshold>(group_soft_threshold, a, groups.count);
  in_two<GroupSoftThreshold>(group_soft_threshold_sums, a, groups.blocks());
  group_soft_threshold_factors(a);
  in_two<GroupSoftThreshold>(group_soft_threshold_rows, a, groups.outer);
}

// The same of planes that layers pass on, to such planes.
void in_planes(SparseConv2d a) {
  SparseConv2d images = copy_of_images(a.n, a.h, a.w);
  ConvPlanes p;
  sparse_planes_plan(images, std::max(a.padding[0], a.padding[1]) + 1, p);
  std::unique_ptr<bool[]> kept(new bool[static_cast<size_t>(p.x_plane - 2 * p.edge)]);
  sparse_planes_kept(images, p, kept.get());
  const auto planes = [&](int64_t channels, const float* from) {
    std::vector<float> made(static_cast<size_t>(channels * p.x_plane));
    images.c = channels, images.x = from;
    in_two(channels, [&](int64_t begin, int64_t end) {
      sparse_conv2d_pack(images, p, made.data() + p.edge, nullptr, begin, end);
    });
    return made;
  };
  const std::vector<float> x = planes(a.c, a.x), more = planes(a.m, a.addend ? a.addend : a.y);
  std::vector<float> y(static_cast<size_t>(a.m * p.x_plane));
  images.m = a.m, images.y = a.y;
  sparse_planes_tiles(a, p);
  a.y = y.data() + p.edge, a.addend = a.addend ? more.data() + p.edge : nullptr;
  const Numbers to = distances(a, p), work = work_before(a);
  const ConvProduct product{p, x.data() + p.edge, a.y, to.get(), work.get(), kept.get()};
  in_two(p.tiles * work[static_cast<size_t>(a.m)],
         [&](int64_t begin, int64_t end) { sparse_conv2d_multiply(a, product, begin, end); });
  in_two(a.m, [&](int64_t begin, int64_t end) { sparse_conv2d_unpack(images, p, a.y, nullptr, begin, end); });
}

// sizes: n, c, h, w, m, oh, ow, kh, kw, then two each of stride, padding and dilation, groups, activation, whether to
// add, and whether in planes that layers pass on.
void convolution(const Case& c) {
  const auto& s = c.sizes;
  const auto floats = [&](size_t i) { return reinterpret_cast<float*>(c[i]); };
  const SparseConv2d a{floats(0),
                       c[1],
                       reinterpret_cast<uint8_t*>(c[2]),
                       reinterpret_cast<int32_t*>(c[3]),
                       floats(4),
                       floats(5),
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
                       s[17] ? floats(6) : nullptr};
  if (s[18]) return in_planes(a);
  ConvPlanes p;
  sparse_conv2d_plan(a, p);
  const int64_t count = a.c * p.phases[0] * p.phases[1];
  std::vector<float> planes(static_cast<size_t>(count * p.x_plane)), out(static_cast<size_t>(a.m * p.y_plane));
  std::vector<float> flat(static_cast<size_t>(p.flat));
  const Numbers to = distances(a, p), work = work_before(a);
  const ConvProduct product{
      p, p.in_place ? a.x : planes.data(), p.in_place ? a.y : out.data(), to.get(), work.get(), nullptr};
  if (!p.in_place)
    in_two(count,
           [&](int64_t begin, int64_t end) { sparse_conv2d_pack(a, p, planes.data(), flat.data(), begin, end); });
  in_two(p.images * p.tiles * work[static_cast<size_t>(a.m)],
         [&](int64_t begin, int64_t end) { sparse_conv2d_multiply(a, product, begin, end); });
  if (!p.in_place && !p.to_y)
    in_two(a.m, [&](int64_t begin, int64_t end) { sparse_conv2d_unpack(a, p, out.data(), flat.data(), begin, end); });
}

// A matrix (n, k) in panels, or room for one that is written.
struct OwnPanels {
  std::vector<char> room;
  Panels panels;
  OwnPanels(int64_t n, int64_t k) : room((n + 63) / 64 * 64 * k * sizeof(double)), panels{room.data(), n, k} {}
  OwnPanels(const void* matrix, int64_t n, int64_t k, Dtype dtype) : OwnPanels(n, k) {
    in_two<Pack>(pack, {matrix, panels, dtype}, k);
  }
};

// The masked ops take one number: whether the kernel for few rows runs.
void linear(const Case& c) {
  const int64_t n = c.sizes[0], m = c.sizes[1], k = c.sizes[2];
  const MaskedLinear a{c[0], c[1], c.mask(2), c[3], c[4], n, m, k, c.dtype};
  if (c.numbers[0] != 0) return in_two<MaskedLinear>(masked_linear_few, a, m);
  const OwnPanels x(c[0], n, k, c.dtype);
  in_two(m, [&](int64_t begin, int64_t end) { masked_linear_sparse(a, x.panels, begin, end); });
}

void linear_grad_x(const Case& c) {
  const int64_t n = c.sizes[0], m = c.sizes[1], k = c.sizes[2];
  const MaskedLinearGradX a{c[0], c[1], c.mask(2), c[3], n, m, k, c.dtype};
  if (c.numbers[0] != 0) return in_two<MaskedLinearGradX>(masked_linear_grad_x_few, a, k);
  const OwnPanels grad(c[0], n, m, c.dtype), x(n, k);
  in_two(k, [&](int64_t begin, int64_t end) { masked_linear_grad_x_sparse(a, grad.panels, x.panels, begin, end); });
  in_two<Unpack>(unpack, {x.panels, c[3], c.dtype}, k);
}

void linear_grad_weight(const Case& c) {
  const int64_t n = c.sizes[0], m = c.sizes[1], k = c.sizes[2];
  const MaskedLinearGradWeight a{c[0], c[1], c.mask(2), c[3], n, m, k, c.dtype};
  if (c.numbers[0] != 0) return in_two<MaskedLinearGradWeight>(masked_linear_grad_weight_few, a, m);
  const OwnPanels grad(c[0], n, m, c.dtype), x(c[1], n, k, c.dtype);
  in_two(m,
         [&](int64_t begin, int64_t end) { masked_linear_grad_weight_sparse(a, grad.panels, x.panels, begin, end); });
}

// sizes: those of the struct in its order, then flip, channels_last and activation.
DepthwiseConv2d depthwise_struct(const Case& c, void* y) {
  const auto& s = c.sizes;
  return {c[0],   c[1],  c[2],  y,     s[0],  s[1],       s[2],       s[3],
          s[4],   s[5],  s[6],  s[7],  s[8],  s[9],       s[10],      s[11],
          s[12],  s[13], s[14], s[15], s[16], s[17] != 0, s[18] != 0, static_cast<Activation>(s[19]),
          c.dtype};
}

void depthwise(const Case& c) {
  const DepthwiseConv2d a = depthwise_struct(c, c[3]);
  if (!a.channels_last) return in_two<DepthwiseConv2d>(depthwise_conv2d_planes, a, a.n * a.out_c);
  const int64_t channels = a.in_c > a.out_c ? a.in_c : a.out_c;
  std::vector<double> packed(static_cast<size_t>(a.kh * a.kw * channels));
  in_two(channels, [&](int64_t begin, int64_t end) { depthwise_conv2d_pack(a, packed.data(), begin, end); });
  in_two(a.n * ((a.out_h + 1) / 2),
         [&](int64_t begin, int64_t end) { depthwise_conv2d_pixels(a, packed.data(), begin, end); });
}

// sizes: n, c, positions, before, after. numbers: scale, k.
void response_norm(const Case& c) {
  const auto& s = c.sizes;
  const auto floats = [&](size_t i) { return reinterpret_cast<float*>(c[i]); };
  const LocalResponseNorm a{floats(0),
                            floats(1),
                            s[0],
                            s[1],
                            s[2],
                            s[3],
                            s[4],
                            static_cast<float>(c.numbers[0]),
                            static_cast<float>(c.numbers[1])};
  in_two<LocalResponseNorm>(local_response_norm, a, a.n * a.blocks());
}

// sizes: those of the struct in its order.
void pool(const Case& c) {
  const auto& s = c.sizes;
  const auto floats = [&](size_t i) { return reinterpret_cast<float*>(c[i]); };
  const MaxPool2d a{floats(0), floats(1), s[0], s[1], s[2],  s[3],  s[4], s[5],
                    s[6],      s[7],      s[8], s[9], s[10], s[11], s[12]};
  std::vector<float> line(static_cast<size_t>(a.line_numbers()));
  in_two(a.planes, [&](int64_t begin, int64_t end) { max_pool2d(a, line.data(), begin, end); });
}

// sizes: those of the depthwise convolution, then m, activation and rows.
void separable(const Case& c) {
  const auto& s = c.sizes;
  const auto floats = [&](size_t i) { return reinterpret_cast<float*>(c[i]); };
  const SeparableConv2d a{depthwise_struct(c, nullptr),   floats(3), floats(4), floats(5), s[20],
                          static_cast<Activation>(s[21]), s[22]};
  std::vector<float> tile(static_cast<size_t>(a.tile_numbers()));
  in_two(a.tiles() * a.panels(), [&](int64_t begin, int64_t end) { separable_conv2d(a, tile.data(), begin, end); });
}

// sizes: those of the struct in its order, then activation.
void stem(const Case& c) {
  const auto& s = c.sizes;
  const auto floats = [&](size_t i) { return reinterpret_cast<float*>(c[i]); };
  const StemConv2d a{floats(0), floats(1), floats(2), floats(3),  s[0],
                     s[1],      s[2],      s[3],      s[4],       s[5],
                     s[6],      s[7],      s[8],      s[9],       s[10],
                     s[11],     s[12],     s[13],     s[14],      s[15],
                     s[16],     s[17],     s[18],     s[19] != 0, static_cast<Activation>(s[20])};
  std::vector<float> packed(static_cast<size_t>(a.panels() * a.taps() * stem_outputs));
  std::vector<float> window(static_cast<size_t>(a.window_numbers() + a.row_numbers()));
  in_two(a.panels(), [&](int64_t begin, int64_t end) { stem_conv2d_pack(a, packed.data(), begin, end); });
  in_two(a.n * a.out_h, [&](int64_t begin, int64_t end) { stem_conv2d(a, packed.data(), window.data(), begin, end); });
}

// sizes: those of the struct in its order, then channels_last.
void depthwise_grad_weight(const Case& c) {
  const auto& s = c.sizes;
  const DepthwiseConv2dGradWeight a{c[0], c[1], c[2], s[0],  s[1],  s[2],  s[3],  s[4],  s[5],       s[6],
                                    s[7], s[8], s[9], s[10], s[11], s[12], s[13], s[14], s[15] != 0, c.dtype};
  const auto kernel = a.channels_last ? depthwise_conv2d_grad_weight_pixels : depthwise_conv2d_grad_weight_planes;
  in_two<DepthwiseConv2dGradWeight>(kernel, a, a.c * a.multiplier);
}

const std::map<std::string, void (*)(const Case&)> ops = {
    {"depthwise_conv2d", depthwise},
    {"depthwise_conv2d_grad_weight", depthwise_grad_weight},
    {"apply_mask",
     [](const Case& c) { in_two<ApplyMask>(apply_mask, {c[0], c.mask(1), c[2], c.sizes[0], c.dtype}, c.sizes[0]); }},
    {"group_norms", norms},
    {"group_soft_threshold", soft_threshold},
    {"local_response_norm", response_norm},
    {"masked_linear", linear},
    {"masked_linear_grad_x", linear_grad_x},
    {"masked_linear_grad_weight", linear_grad_weight},
    {"max_pool2d", pool},
    {"prune_splice_",
     [](const Case& c) {
       const auto& x = c.numbers;
       in_two<PruneSplice>(prune_splice, {c[0], c.mask(1), c.sizes[0], x[0], x[1], c.dtype}, c.sizes[0]);
     }},
    {"sgd_prune_splice_",
     [](const Case& c) {
       const auto& x = c.numbers;
       in_two<SgdPruneSplice>(
           sgd_prune_splice,
           {c[0], c[1], c[2], c.mask(3), c.sizes[0], x[0], x[1], x[2], x[3], x[4], x[5] != 0, c.dtype}, c.sizes[0]);
     }},
    {"separable_conv2d", separable},
    {"singular_value_threshold", low_rank},
    {"sparse_conv2d", convolution},
    {"sparse_linear", sparse},
    {"stem_conv2d", stem},
};

template <class T>
std::vector<T> read_list(std::istream& in) {
  size_t n = 0;
  in >> n;
  std::vector<T> list(n);
  for (T& x : list) in >> x;
  return list;
}

// op dtype, sizes, numbers, bytes of each array (-1: a null pointer); a newline; the arrays.
bool read_case(std::istream& in, Case& c) {
  int dtype;
  if (!(in >> c.op >> dtype)) return false;
  c.dtype = static_cast<Dtype>(dtype);
  c.sizes = read_list<int64_t>(in);
  c.numbers = read_list<double>(in);
  c.bytes = read_list<int64_t>(in);
  in.ignore();
  for (const int64_t bytes : c.bytes) {
    char* data = bytes < 0 ? nullptr : static_cast<char*>(std::malloc(static_cast<size_t>(bytes)));
    if (data) in.read(data, bytes);
    c.arrays.push_back(data);
  }
  return true;
}

}  // namespace

int main(int, char** argv) {
  std::ifstream in(argv[1], std::ios::binary);
  std::ofstream out(argv[2], std::ios::binary);
  for (Case c; read_case(in, c); c = {}) {
    ops.at(c.op)(c);
    for (size_t i = 0; i < c.arrays.size(); ++i) {
      if (c.arrays[i]) out.write(c.arrays[i], c.bytes[i]);
      std::free(c.arrays[i]);
    }
  }
  return in.eof() && out.good() ? 0 : 1;
}
