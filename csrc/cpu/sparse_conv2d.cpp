// sparse_conv2d: the product of filters with planes.
#include "../sparse_conv2d.h"

#include "activation.h"
#include "sparse_conv2d_tile.h"
#include "unroll.h"

namespace crest::CREST_ISA {
namespace {

using V = Vec<float>;
constexpr int64_t most_filters = 128;  // at a time: their sums stay in the second level of cache
constexpr int64_t filters_ahead = 12;  // of the one whose y is asked for, which may come from memory: a few hundred ns

template <class T>
inline const float* decode(const T* values, int64_t count, float* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = widen(values[i]);
  return to;
}

// The values of a cell.
inline const float* values_of(const SparseConv2d& a, int64_t from, int64_t count, float* room) {
  if (a.dtype == Dtype::float32) return static_cast<const float*>(a.values) + from;
  if (a.dtype == Dtype::bfloat16) return decode(static_cast<const BFloat16*>(a.values) + from, count, room);
  return decode(static_cast<const Half*>(a.values) + from, count, room);
}

// Filters [first, last) of one group, times the tile of the planes of `size` registers that begins `at` numbers after
// x and y. The sums of a filter stay in registers for as long as it meets the channels of one tile of the weight.
// Where a column is a plane, where it meets x is computed, which takes less than a load; and sums that are not done
// have a place of their own where y is written at once: less to keep in cache than planes of y.
template <int size, bool unmoved>
inline void multiply(const SparseConv2d& a, const ConvProduct& p, const float* x, float* y, int64_t at, int64_t first,
                     int64_t last) {
  const int64_t tiles = (a.c / a.groups * a.kh * a.kw + tile_of_filter - 1) / tile_of_filter;
  const int64_t x_plane = p.planes.x_plane;
  const bool to_y = unmoved && p.planes.to_y, in_y = to_y || p.planes.in_place;
  constexpr bool has_room = unmoved && size <= sums_of_many;  // larger tiles meet one tile of the weight: all is done
  alignas(register_bytes) float room[has_room ? most_filters * size * V::width : 1];
  float* const sums = to_y && has_room ? room : y + at + first * p.planes.y_plane;
  const int64_t apart = to_y && has_room ? size * V::width : p.planes.y_plane;
  const int64_t outputs = a.oh * a.ow, after = outputs - at - (size - 1) * V::width;
  const int last_lanes = static_cast<int>(to_y ? min(after, int64_t{V::width}) : V::width);
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const float* planes = x + at + (unmoved ? tile * tile_of_filter * x_plane : 0);
    const int64_t* distances = unmoved ? nullptr : p.distances + tile * tile_of_filter;
    for (int64_t filter = first; filter < last; ++filter) {
      const int64_t from = a.starts[tile * a.m + filter], count = a.starts[tile * a.m + filter + 1] - from;
      float* out = sums + (filter - first) * apart;
      V sum[size];
      if (tile)
        unroll<size>([&](auto i) CREST_INLINE { sum[i] = V::load(out + i * V::width); });
      else
        unroll<size>([&, bias = V::all(a.bias ? a.bias[filter] : 0)](auto i) CREST_INLINE { sum[i] = bias; });
      float decoded[tile_of_filter];
      const float* values = values_of(a, from, count, decoded);
      const uint8_t* columns = a.columns + from;
      for (int64_t j = 0; j < count; ++j) {
        const V w = V::all(values[j]);
        const float* in = planes + (unmoved ? columns[j] * x_plane : distances[columns[j]]);
        unroll<size>([&](auto i) CREST_INLINE { sum[i] = w * V::load(in + i * V::width) + sum[i]; });
      }
      const bool done = tile == tiles - 1;
      if (to_y && done) {
        constexpr int line = 64 / sizeof(float);
        const float* next = a.y + min(filter + filters_ahead, a.m - 1) * outputs + at;
        unroll<(size * V::width + line - 1) / line>([&](auto i)
                                                        CREST_INLINE { __builtin_prefetch(next + i * line, 0, 2); });
        out = a.y + filter * outputs + at;
      }
      if (done && in_y && a.addend) {
        const float* more = a.addend + (out - a.y);
        unroll<size - 1>([&](auto i) CREST_INLINE { sum[i] = sum[i] + V::load(more + i * V::width); });
        sum[size - 1] = sum[size - 1] + load_first<V>(more + (size - 1) * V::width, last_lanes);
      }
      // Which activation is asked here, not once for each register.
      if (done && a.activation != Activation::none && (in_y || !a.addend)) {
        unroll<size>([&](auto i) CREST_INLINE { sum[i] = activate(sum[i], Activation::relu); });
        if (a.activation == Activation::relu6)
          unroll<size>([&](auto i) CREST_INLINE { sum[i] = activate(sum[i], Activation::relu6); });
      }
      if (done && p.kept) unroll<size>([&](auto i) CREST_INLINE { sum[i] = sum[i].where(p.kept + at + i * V::width); });
      unroll<size - 1>([&](auto i) CREST_INLINE { sum[i].store(out + i * V::width); });
      store_first(sum[size - 1], out + (size - 1) * V::width, done ? last_lanes : V::width);
    }
  }
}

// f(Index<n>{}), for n up to `size`.
template <int64_t size = most_sums, class F>
inline void with_size(int64_t n, const F& f) {
  if constexpr (size > 0) n == size ? f(Index<size>{}) : with_size<size - 1>(n, f);
}

// The first filter whose work begins at `from` or later.
inline int64_t filter_at(const SparseConv2d& a, const int64_t* work, int64_t from) {
  int64_t low = 0, high = a.m;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    work[middle] < from ? low = middle + 1 : high = middle;
  }
  return low;
}

}  // namespace

void sparse_conv2d_multiply(const SparseConv2d& a, const ConvProduct& p, int64_t begin, int64_t end) {
  const ConvPlanes& q = p.planes;
  const int64_t all = p.work[a.m], per_group = a.m / a.groups;
  const int64_t group_planes = a.c / a.groups * q.phases[0] * q.phases[1];
  for (int64_t part = begin / all; part < q.images * q.tiles && part * all < end; ++part) {
    const int64_t image = part / q.tiles, tile = part % q.tiles;
    const int64_t step = tile * q.steps / q.tiles, next_step = (tile + 1) * q.steps / q.tiles, at = step * V::width;
    const float* x = p.x + image * a.c * q.x_plane;
    float* y = p.y + image * a.m * q.y_plane;
    const int64_t last = filter_at(a, p.work, end - part * all);
    for (int64_t filter = filter_at(a, p.work, begin - part * all); filter < last;) {
      const int64_t group = filter / per_group;
      const int64_t next = min(min(last, filter + most_filters), (group + 1) * per_group);
      const float* planes = x + group * group_planes * q.x_plane;
      with_size(next_step - step, [&](auto size) {
        q.unmoved ? multiply<size, true>(a, p, planes, y, at, filter, next)
                  : multiply<size, false>(a, p, planes, y, at, filter, next);
      });
      filter = next;
    }
  }
}

}  // namespace crest::CREST_ISA
