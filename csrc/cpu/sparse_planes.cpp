// sparse_conv2d: planes that convolutions pass on.
#include "../sparse_conv2d.h"
#include "sparse_conv2d_tile.h"

namespace crest::CREST_ISA {

constexpr int64_t lanes = Vec<float>::width;

void sparse_planes_plan(const SparseConv2d& a, int64_t margin, ConvPlanes& p) {
  p = {};
  p.phases[0] = p.phases[1] = p.images = 1;
  p.neighbours = p.in_place = true;
  p.qh = a.h + margin, p.qw = a.w + margin;
  p.steps = ceil_div(((a.n - 1) * p.qh + a.h - 1) * p.qw + a.w, lanes);
  p.edge = ceil_div(margin * p.qw + margin, lanes) * lanes;
  p.x_plane = p.y_plane = p.steps * lanes + 2 * p.edge;
}

void sparse_planes_tiles(const SparseConv2d& a, ConvPlanes& p) {
  p.unmoved = a.kh * a.kw == 1;
  p.centre = a.padding[0] * p.qw + a.padding[1];
  p.halo = 2 * ceil_div(p.centre, lanes);
  p.tiles = tiles_of(a, p, p.steps);
}

void sparse_planes_kept(const SparseConv2d& a, const ConvPlanes& p, bool* kept) {
  for (int64_t i = 0; i < p.steps * lanes; ++i) kept[i] = false;
  for (int64_t i = 0; i < a.n; ++i)
    for (int64_t row = 0; row < a.h; ++row)
      for (int64_t column = 0; column < a.w; ++column) kept[(i * p.qh + row) * p.qw + column] = true;
}

}  // namespace crest::CREST_ISA
