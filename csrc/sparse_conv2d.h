#pragma once
// sparse_conv2d: y = act(conv2d(x, weight) + bias + addend) for a weight (m, c / groups, kh, kw) that was packed once.
//
// The packed weight. Each filter is a row of k = c / groups * kh * kw columns, in the order of its memory; columns are
// cut into tiles of 128, so that a column within its tile is one byte. A filter's part of a tile is a cell, and cells
// lie in memory tile by tile: the filters of a tile meet the same few channels, while those are in cache.
//
//   values   (nnz,)          float32, bfloat16 or float16
//   columns  (nnz,)          uint8 within the tile
//   starts   (tiles m + 1,)  int32: cell tile * m + filter has non-zeros [starts[cell], starts[cell + 1])
//
// A non-zero takes 5 bytes (3 in half precision), and its share of starts less than one at 95 % zeros. Nothing is
// padded, so what a filter drops is never looked at.
#include "activation.h"
#include "dtype.h"
#include "isa.h"

namespace crest {

constexpr int64_t tile_of_filter = 128;

struct SparseConv2d {
  const float* x;          // (n, c, h, w)
  const void* values;      // the packed weight, as above
  const uint8_t* columns;  // each below min(128, k - its tile's first)
  const int32_t* starts;
  const float* bias;  // (m,), or nullptr
  float* y;           // (n, m, oh, ow)
  int64_t n, c, h, w, m, oh, ow, kh, kw;
  int64_t stride[2], padding[2], dilation[2], groups;
  Activation activation;
  Dtype dtype;                    // of values
  const float* addend = nullptr;  // as y
};

// Direct convolution: padded, x is a plane of numbers a channel, and a weight meets the numbers at one fixed distance
// from each output. So a convolution is a product of a sparse matrix with rows that are views into these planes.
//
// Planes. The rows of all images follow each other, and share their padding: what is right of a row is left of the
// next one, what is below an image is above the next one. Position (image qh + row) qw + column of an output is in the
// plane as well, so that distances do not depend on it; positions between rows and images give numbers nobody reads.
// A stride of s takes each s-th row and column: they make planes of their own, its phases.
//
// Lanes. A register holds positions that are `steps` apart, a segment of the plane for each lane, and the next register
// the positions after these. So any distance is a whole number of registers, and loads are aligned: reading across
// cache lines halves the rate. Each segment is followed by a copy of the next one's first `halo` positions. Where to
// put lanes apart takes longer than that saves, as with few non-zeros, lanes are neighbours. They are for a kernel of
// 1x1, which knows no distances; and where images are whole registers, x and y are the planes.
struct ConvPlanes {
  bool unmoved;                    // a column is a plane: its distance is none
  bool neighbours;                 // lanes are, instead of being `steps` apart
  bool in_place;                   // planes are x and y, an image at a time
  bool to_y;                       // y is one image without gaps, and the last tile of the weight writes y itself
  int64_t images;                  // 1 unless in place
  int64_t phases[2], qh, qw;       // phases kept of rows and columns; rows and columns of an image in one of them
  int64_t steps, tiles, halo;      // registers of a plane of y; tiles it is cut into; registers of x beyond it
  int64_t x_plane, y_plane, flat;  // numbers in a plane, and in the one a thread needs to change the order of lanes
  int64_t edge;                    // zeros before and behind a plane that layers pass on, or none
  int64_t centre;                  // how many positions before an output's own its first column is, in such a plane
};

// Its arguments are the planes of x and y, the distance of each column, and the work before each filter: share
// [begin, end) of images * tiles * work[m] does the filters whose work begins in it.
struct ConvProduct {
  ConvPlanes planes;
  const float* x;
  float* y;
  const int64_t* distances;  // (k,); from the first plane of a group
  const int64_t* work;       // (m + 1,)
  const bool* kept;          // (y_plane,): which numbers of a plane are results, the others being zero; nullptr for all
};

CREST_DECLARE_KERNEL(sparse_conv2d_plan, const SparseConv2d&, ConvPlanes&)
// Planes [begin, end) of c * phases, made of x; outputs [begin, end) of m, made of planes.
CREST_DECLARE_KERNEL(sparse_conv2d_pack, const SparseConv2d&, const ConvPlanes&, float* planes, float* flat,
                     int64_t begin, int64_t end)
CREST_DECLARE_KERNEL(sparse_conv2d_unpack, const SparseConv2d&, const ConvPlanes&, const float* planes, float* flat,
                     int64_t begin, int64_t end)
CREST_DECLARE_KERNEL(sparse_conv2d_multiply, const SparseConv2d&, const ConvProduct&, int64_t begin, int64_t end)

// Planes that layers pass on: x and y of convolutions whose results are as large as their images. These are (n, h, w)
// as a's, with so many zeros behind each row and image, which what is before the next one reads as well.
CREST_DECLARE_KERNEL(sparse_planes_plan, const SparseConv2d& a, int64_t margin, ConvPlanes&)
CREST_DECLARE_KERNEL(sparse_planes_tiles, const SparseConv2d&, ConvPlanes&)  // for this convolution of them
CREST_DECLARE_KERNEL(sparse_planes_kept, const SparseConv2d&, const ConvPlanes&, bool* kept)

namespace cuda {
void sparse_conv2d(const SparseConv2d&, void* stream);
}

}  // namespace crest
