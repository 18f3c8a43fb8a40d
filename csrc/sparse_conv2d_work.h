#pragma once
// What each call of sparse_conv2d on the CPU derives from its shapes and weight: where columns meet x, and the work.
#include <memory>

#include "sparse_conv2d.h"

namespace crest {

inline int64_t tiles_of_filter(const SparseConv2d& a) {
  return (a.c / a.groups * a.kh * a.kw + tile_of_filter - 1) / tile_of_filter;
}

constexpr int64_t cached_numbers = 3 << 17;  // 1.5 MiB: stay in the second level of cache

// Numbers in the planes of x and y.
inline int64_t room_for_planes(const SparseConv2d& a, const ConvPlanes& p) {
  return a.c * p.phases[0] * p.phases[1] * p.x_plane + a.m * p.y_plane;
}

// Images as they are, to be packed into planes that layers pass on, or unpacked: of so many channels as c or m says.
inline SparseConv2d copy_of_images(int64_t n, int64_t h, int64_t w) {
  SparseConv2d a{};
  a.n = n, a.h = a.oh = h, a.w = a.ow = w;
  a.kh = a.kw = a.groups = 1;
  for (int i = 0; i < 2; ++i) a.stride[i] = a.dilation[i] = 1;
  return a;
}

using Numbers = std::unique_ptr<int64_t[]>;

// (k,): how far from an output's place the number is that each column meets. None where columns are planes.
inline Numbers distances(const SparseConv2d& a, const ConvPlanes& p) {
  if (p.unmoved) return {};
  const int64_t lanes = p.neighbours ? 1 : p.y_plane / p.steps, channels = a.c / a.groups;
  const int64_t per_channel = p.phases[0] * p.phases[1] * p.x_plane;
  const int64_t columns = channels * a.kh * a.kw;
  Numbers to(new int64_t[static_cast<size_t>(columns)]);
  int64_t* next = to.get();
  for (int64_t i = 0; i < a.kh; ++i)
    for (int64_t j = 0; j < a.kw; ++j) {
      const int64_t row = i * a.dilation[0], column = j * a.dilation[1];
      const int64_t phase = row % a.stride[0] * p.phases[1] + column % a.stride[1];
      const int64_t position = row / a.stride[0] * p.qw + column / a.stride[1] - p.centre;
      *next++ = phase * p.x_plane + position * lanes;
    }
  for (const int64_t* before = to.get(); next < to.get() + columns;) *next++ = *before++ + per_channel;
  return to;
}

// (m + 1,): the multiply-adds of the filters before each, a tile that begins and ends taken as one.
inline Numbers work_before(const SparseConv2d& a) {
  const int64_t tiles = tiles_of_filter(a);
  Numbers before(new int64_t[static_cast<size_t>(a.m + 1)]());
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int32_t* starts = a.starts + tile * a.m;
    for (int64_t i = 0; i < a.m; ++i) before[i + 1] += starts[i + 1] - starts[i] + 1;
  }
  for (int64_t i = 0; i < a.m; ++i) before[i + 1] += before[i];
  return before;
}

}  // namespace crest
