// sparse_conv2d: from x to planes, and from planes to y.
#include "../sparse_conv2d.h"
#include "activation.h"
#include "every_other.h"
#include "sparse_conv2d_tile.h"
#include "transpose.h"
#include "unroll.h"

namespace crest::CREST_ISA {
namespace {

using V = Vec<float>;
constexpr int64_t lanes = V::width;

// Rows (or columns) kept of an image of `size`: as many as are read, less the padding that the next image begins with.
inline int64_t kept(int64_t size, int64_t outputs, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) {
  const int64_t read = (outputs - 1) * stride + (kernel - 1) * dilation + 1;
  return max(min(read, padding + size), read - padding);
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
inline void add(const float* from, const float* addend, Activation activation, float* to, int64_t count, int64_t room) {
  for_each(count, room, [&](auto v, int64_t i) {
    const auto sum = decltype(v)::load(from + i) + decltype(v)::load(addend + i);
    activate(sum, activation).store(to + i);
  });
}

// A register to where there is room up to `end`. What it writes too much is written again, from left to right.
inline void put(V v, float* to, const float* end) {
  end - to >= lanes ? v.store(to) : store_first(v, to, static_cast<int>(end - to));
}

// Every `stride`-th of x's numbers, of which there are so many from here on.
inline void copy_apart(const float* x, int64_t there, int64_t stride, float* to, int64_t count, const float* end) {
  if (stride != 2) {
    for (int64_t j = 0; j < count; ++j) to[j] = x[j * stride];
    return;
  }
  const auto some = [&](int64_t at) {
    return there - at >= lanes ? V::load(x + at) : load_first<V>(x + at, static_cast<int>(max(there - at, int64_t{0})));
  };
  for (int64_t j = 0; j < count; j += lanes)
    put(reorder(every_other<0>(some(2 * j), some(2 * j + lanes))), to + j, end);
}

// The columns of a phase that are some of x: the first in the plane, where in x that is, and how many there are.
struct Columns {
  int64_t first, from, count;

  Columns(const SparseConv2d& a, const ConvPlanes& p, int64_t phase) {
    const int64_t stride = a.stride[1];
    first = max(ceil_div(a.padding[1] - phase, stride), int64_t{0});
    from = first * stride + phase - a.padding[1];
    count = max(min(p.qw - first, ceil_div(a.w - from, stride)), int64_t{0});
  }
};

// A row's phase of a channel, with zeros around it, as one plane whose lanes are neighbours.
inline void lay_out(const SparseConv2d& a, const ConvPlanes& p, int64_t channel, int64_t row, const Columns& columns,
                    float* plane, int64_t size) {
  const auto [first, from, count] = columns;
  const float* const end = plane + size;
  const auto zeros = [end](float* to, const float* before) {
    for (; to < before; to += lanes) put(V::zero(), to, end);
  };
  float* to = plane;
  for (int64_t i = 0; i < a.n; ++i)
    for (int64_t q = 0; q < p.qh; ++q, to += p.qw) {
      const int64_t y = q * a.stride[0] + row - a.padding[0];
      if (y < 0 || y >= a.h || !count) {
        zeros(to, to + p.qw);
        continue;
      }
      const float* x = a.x + ((i * a.c + channel) * a.h + y) * a.w + from;
      float* const begin = to + first;
      zeros(to, begin);
      if (a.stride[1] == 1) {
        int64_t j = 0;
        for (; j + lanes <= count; j += lanes) V::load(x + j).store(begin + j);
        if (j < count) put(load_first<V>(x + j, static_cast<int>(count - j)), begin + j, end);
      } else {
        copy_apart(x, a.w - from, a.stride[1], begin, count, end);
      }
      zeros(begin + count, to + p.qw);
    }
  zeros(to, end);
}

// Whether to put lanes apart, in x and back in y, would take longer than loads across cache lines do.
inline bool turning_takes_longer(const SparseConv2d& a, const ConvPlanes& p) {
  const int64_t cells = ceil_div(a.c / a.groups * a.kh * a.kw, tile_of_filter) * a.m;
  const int64_t turned = a.c * p.phases[0] * p.phases[1] * (p.steps + p.halo) + a.m * p.steps;
  return a.starts[cells] * p.steps < loads_per_turn * turned;
}

}  // namespace

void sparse_conv2d_plan(const SparseConv2d& a, ConvPlanes& p) {
  p.edge = p.centre = 0;
  const int64_t kernel[] = {a.kh, a.kw};
  for (int i = 0; i < 2; ++i) p.phases[i] = min(a.stride[i], (kernel[i] - 1) * a.dilation[i] + 1);
  p.qh = ceil_div(kept(a.h, a.oh, a.kh, a.stride[0], a.padding[0], a.dilation[0]), a.stride[0]);
  p.qw = ceil_div(kept(a.w, a.ow, a.kw, a.stride[1], a.padding[1], a.dilation[1]), a.stride[1]);
  p.halo = (a.kh - 1) * a.dilation[0] / a.stride[0] * p.qw + (a.kw - 1) * a.dilation[1] / a.stride[1];
  p.unmoved = p.halo == 0 && p.phases[0] == 1 && p.phases[1] == 1;
  p.steps = ceil_div(((a.n - 1) * p.qh + a.oh - 1) * p.qw + a.ow, lanes);
  p.neighbours = p.unmoved || turning_takes_longer(a, p);
  if (p.neighbours) p.halo = ceil_div(p.halo, lanes);
  // Outputs lie where their numbers of x do; or side by side at least, as in a plane.
  const bool row = p.unmoved && a.h == 1 && a.stride[0] * a.stride[1] == 1 && a.padding[0] + a.padding[1] == 0;
  const bool dense = p.unmoved && p.qh == a.oh && p.qw == a.ow;
  p.in_place = row && a.ow % lanes == 0;
  p.to_y = dense && !p.in_place && a.n == 1;
  p.images = p.in_place ? a.n : 1;
  if (p.in_place) p.steps = a.ow / lanes;
  p.tiles = tiles_of(a, p, p.steps);
  p.y_plane = p.steps * lanes;
  const int64_t all = a.n * p.qh * p.qw;
  p.x_plane = max(p.steps + p.halo, p.neighbours ? ceil_div(all, lanes) : 0) * lanes;
  if (p.in_place) p.x_plane = p.y_plane;
  p.flat = max(all + lanes, (lanes - 1) * p.steps + ceil_div(p.steps + p.halo, lanes) * lanes);
}

void sparse_conv2d_pack(const SparseConv2d& a, const ConvPlanes& p, float* planes, float* flat, int64_t begin,
                        int64_t end) {
  const int64_t registers = p.steps + p.halo, phases = p.phases[0] * p.phases[1];
  int64_t channel = begin / phases, phase = begin % phases;
  Columns columns(a, p, phase % p.phases[1]);
  for (int64_t plane = begin; plane < end; ++plane) {
    if (phases > 1) columns = Columns(a, p, phase % p.phases[1]);  // takes as long as to copy a small plane
    const int64_t row = phases > 1 ? phase / p.phases[1] : 0;
    float* to = planes + plane * p.x_plane;
    lay_out(a, p, channel, row, columns, p.neighbours ? to : flat, p.neighbours ? p.x_plane - p.edge : p.flat);
    for (int64_t i = 0; i < registers && !p.neighbours; i += lanes) {
      V square[lanes];
      for (int64_t l = 0; l < lanes; ++l) square[l] = V::load(flat + l * p.steps + i);
      transpose(square);
      for (int64_t l = 0; l < min(registers - i, lanes); ++l) square[l].store(to + (i + l) * lanes);
    }
    if (++phase == phases) phase = 0, ++channel;
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
        a.addend ? add(sums, a.addend + at, a.activation, a.y + at, a.ow, room) : copy(sums, a.y + at, a.ow, room);
      }
    }
  }
}

}  // namespace crest::CREST_ISA
