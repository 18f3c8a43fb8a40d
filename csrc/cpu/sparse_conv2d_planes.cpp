// sparse_conv2d: from x to planes, and from planes to y.
#include "../sparse_conv2d.h"
#include "every_other.h"
#include "sparse_conv2d_tile.h"
#include "transpose.h"
#include "unroll.h"

namespace crest::CREST_ISA {
namespace {

using V = Vec<float>;
constexpr int64_t lanes = V::width;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Rows (or columns) kept of an image of `size`: as many as are read, less the padding that the next image begins with.
inline int64_t kept(int64_t size, int64_t outputs, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) {
  const int64_t read = (outputs - 1) * stride + (kernel - 1) * dilation + 1;
  return max(min(read, padding + size), read - padding);
}

// Tiles that a plane of so many registers is cut into: few, as a non-zero costs each of them loads besides, of where it
// is and its value, but as many as keep what the columns of one tile of the weight touch of x in cache.
inline int64_t tiles_of(const SparseConv2d& a, const ConvPlanes& p, int64_t registers) {
  const int64_t columns = min(a.c / a.groups * a.kh * a.kw, tile_of_filter);
  const int64_t planes = min(a.c / a.groups, tile_of_filter / (a.kh * a.kw) + 1) * p.phases[0] * p.phases[1];
  int64_t most = most_sums;
  while (most > least_sums && min(columns * most, planes * (most + p.halo)) * register_bytes > cached_bytes) --most;
  return ceil_div(registers, most);
}

// f<V>(i) for each register of (count,), of which `room` numbers may be read and written.
template <class F>
inline void for_each(int64_t count, int64_t room, const F& f) {
  if (ceil_div(count, lanes) * lanes <= room)
    for (int64_t i = 0; i < count; i += lanes) f(V{}, i);
  else
    for_each_register<float>(0, count, f);
}

// From to to, (count,) each, and what is added on the way.
inline void copy(const float* from, float* to, int64_t count, int64_t room) {
  for_each(count, room, [&](auto v, int64_t i) { decltype(v)::load(from + i).store(to + i); });
}
inline void add(const float* from, const float* addend, bool with_relu, float* to, int64_t count, int64_t room) {
  for_each(count, room, [&](auto v, int64_t i) {
    const auto sum = decltype(v)::load(from + i) + decltype(v)::load(addend + i);
    (with_relu ? relu(sum) : sum).store(to + i);
  });
}

// Every `stride`-th of x's numbers, of which there are so many from here on.
inline void copy_apart(const float* x, int64_t there, int64_t stride, float* to, int64_t count) {
  const bool odd = 2 * count > there;  // the last number has none behind it
  if (stride != 2 || count < lanes + odd) {
    for (int64_t j = 0; j < count; ++j) to[j] = x[j * stride];
    return;
  }
  for (int64_t j = 0; j < count; j += lanes) {
    const int64_t at = min(j, count - lanes);
    const float* from = x + 2 * at;
    const V some = odd && at + lanes == count ? every_other<1>(V::load(from - 1), V::load(from - 1 + lanes))
                                              : every_other<0>(V::load(from), V::load(from + lanes));
    reorder(some).store(to + at);
  }
}

// Rows of phase (row, column) of a channel, with zeros around them, as one plane whose lanes are neighbours.
inline void lay_out(const SparseConv2d& a, const ConvPlanes& p, int64_t channel, int64_t row, int64_t column,
                    float* plane, int64_t size) {
  if (p.to_y && a.h == 1 && a.stride[1] == 1) {  // a row, and zeros up to the end
    const float* x = a.x + channel * a.w;
    int64_t i = 0;
    for (; i + lanes <= a.w; i += lanes) V::load(x + i).store(plane + i);
    for (; i < size; i += lanes) load_first<V>(x + i, static_cast<int>(max(a.w - i, int64_t{0}))).store(plane + i);
    return;
  }
  std::memset(plane, 0, static_cast<size_t>(size) * sizeof(float));
  const int64_t stride = a.stride[1];
  // The first column of the phase that is one of x, and how many there are.
  const int64_t first = max(ceil_div(a.padding[1] - column, stride), int64_t{0});
  const int64_t from = first * stride + column - a.padding[1];
  const int64_t count = min(p.qw - first, ceil_div(a.w - from, stride));
  for (int64_t i = 0; i < a.n; ++i)
    for (int64_t q = 0; q < p.qh; ++q) {
      const int64_t y = q * a.stride[0] + row - a.padding[0];
      if (y < 0 || y >= a.h) continue;
      const float* x = a.x + ((i * a.c + channel) * a.h + y) * a.w + from;
      float* to = plane + (i * p.qh + q) * p.qw + first;
      if (stride == 1)
        for (int64_t j = 0; j < count; j += lanes) {
          const int some = static_cast<int>(min(count - j, lanes));
          store_first(load_first<V>(x + j, some), to + j, some);
        }
      else
        copy_apart(x, a.w - from, stride, to, count);
    }
}

}  // namespace

void sparse_conv2d_plan(const SparseConv2d& a, ConvPlanes& p) {
  const int64_t kernel[] = {a.kh, a.kw};
  for (int i = 0; i < 2; ++i) p.phases[i] = min(a.stride[i], (kernel[i] - 1) * a.dilation[i] + 1);
  p.qh = ceil_div(kept(a.h, a.oh, a.kh, a.stride[0], a.padding[0], a.dilation[0]), a.stride[0]);
  p.qw = ceil_div(kept(a.w, a.ow, a.kw, a.stride[1], a.padding[1], a.dilation[1]), a.stride[1]);
  p.halo = (a.kh - 1) * a.dilation[0] / a.stride[0] * p.qw + (a.kw - 1) * a.dilation[1] / a.stride[1];
  p.neighbours = p.halo == 0 && p.phases[0] == 1 && p.phases[1] == 1;
  // Outputs lie where their numbers of x do; or side by side at least, as in a plane.
  const bool row = p.neighbours && a.h == 1 && a.stride[0] * a.stride[1] == 1 && a.padding[0] + a.padding[1] == 0;
  const bool dense = p.neighbours && p.qh == a.oh && p.qw == a.ow;
  p.in_place = row && a.ow % lanes == 0;
  p.to_y = dense && !p.in_place && a.n == 1;
  p.images = p.in_place ? a.n : 1;
  p.steps = p.in_place ? a.ow / lanes : ceil_div(((a.n - 1) * p.qh + a.oh - 1) * p.qw + a.ow, lanes);
  p.tiles = tiles_of(a, p, p.steps);
  p.y_plane = p.steps * lanes;
  const int64_t all = a.n * p.qh * p.qw;
  p.x_plane = (p.neighbours ? max(p.steps, ceil_div(all, lanes)) : p.steps + p.halo) * lanes;
  if (p.in_place) p.x_plane = p.y_plane;
  p.flat = max(all + lanes, (lanes - 1) * p.steps + ceil_div(p.steps + p.halo, lanes) * lanes);
}

void sparse_conv2d_pack(const SparseConv2d& a, const ConvPlanes& p, float* planes, float* flat, int64_t begin,
                        int64_t end) {
  for (int64_t plane = begin; plane < end; ++plane) {
    const int64_t column = plane % p.phases[1], row = plane / p.phases[1] % p.phases[0];
    const int64_t channel = plane / p.phases[1] / p.phases[0], registers = p.steps + p.halo;
    float* to = planes + plane * p.x_plane;
    lay_out(a, p, channel, row, column, p.neighbours ? to : flat, p.neighbours ? p.x_plane : p.flat);
    for (int64_t i = 0; i < registers && !p.neighbours; i += lanes) {
      V square[lanes];
      for (int64_t l = 0; l < lanes; ++l) square[l] = V::load(flat + l * p.steps + i);
      transpose(square);
      for (int64_t l = 0; l < min(registers - i, lanes); ++l) square[l].store(to + (i + l) * lanes);
    }
  }
}

void sparse_conv2d_unpack(const SparseConv2d& a, const ConvPlanes& p, const float* planes, float* flat, int64_t begin,
                          int64_t end) {
  for (int64_t filter = begin; filter < end; ++filter) {
    const float* plane = planes + filter * p.y_plane;
    // A lane's last numbers overrun the next lane's first ones, which are written later.
    for (int64_t i = (p.steps - 1) / lanes * lanes; i >= 0 && !p.neighbours; i -= lanes) {
      V square[lanes];
      for (int64_t l = 0; l < lanes; ++l) square[l] = i + l < p.steps ? V::load(plane + (i + l) * lanes) : V::zero();
      transpose(square);
      for (int64_t l = 0; l < lanes; ++l) square[l].store(flat + l * p.steps + i);
    }
    const float* from = p.neighbours ? plane : flat;
    for (int64_t i = 0; i < a.n; ++i) {
      const int64_t image = (i * a.m + filter) * a.oh * a.ow;
      for (int64_t row = 0; row < a.oh; ++row) {
        const int64_t at = image + row * a.ow, room = (a.oh - row) * a.ow;
        const float* sums = from + (i * p.qh + row) * p.qw;
        a.addend ? add(sums, a.addend + at, a.relu, a.y + at, a.ow, room) : copy(sums, a.y + at, a.ow, room);
      }
    }
  }
}

}  // namespace crest::CREST_ISA
