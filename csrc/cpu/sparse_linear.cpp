#include "../sparse_linear.h"

#include "activation.h"
#include "transpose.h"
#include "unroll.h"

namespace crest::CREST_ISA {
namespace {

// The blocks whose first step is in [begin, end): [first, last).
struct Share {
  int64_t first = 0, last = 0;
  Share(const SparseLinear& a, int64_t begin, int64_t end) {
    for (int64_t block = 0; block < a.blocks; ++block) {
      const int64_t step = a.steps[a.slices[block * a.tiles]];
      first += step < begin;
      last += step < end;
    }
  }
};

inline float finished(const SparseLinear& a, float sum, int64_t row) {
  return activate(sum + (a.bias ? a.bias[row] : 0), a.activation);
}

// ---- few rows of x: one register of sums serves the rows of a slice, and meets x[column] of each ----

#if defined(__AVX512F__)

// A tile of x, which stays in registers: the upper and the lower halves of its numbers, so that one permutation of
// words picks from 64 of them. Gathering them from memory takes three times as long.
class Tile {
 public:
  explicit Tile(const float* x) {
    for (int i = 0; i < 4; ++i) {
      const __m512i a = _mm512_loadu_si512(x + 32 * i), b = _mm512_loadu_si512(x + 32 * i + 16);
      low_[i] = words(a, b);
      high_[i] = words(_mm512_srli_epi32(a, 16), _mm512_srli_epi32(b, 16));
    }
  }

  template <class T>
  void dots(const T* values, const uint8_t* columns, int64_t steps, float* sums) const {
    using V = Vec<float>;
    V even = V::zero(), odd = V::zero();
    int64_t i = 0;
    for (; i + 2 <= steps; i += 2, values += 2 * slice_rows, columns += 2 * slice_rows) {
      const auto [x0, x1] = pick(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(columns)));
      even = fma(V::load(values), x0, even);
      odd = fma(V::load(values + slice_rows), x1, odd);
    }
    if (i < steps) {
      const __m128i last = _mm_loadu_si128(reinterpret_cast<const __m128i*>(columns));
      even = fma(V::load(values), pick(_mm256_castsi128_si256(last)).first, even);
    }
    (even + odd).store(sums);
  }

 private:
  static __m512i words(__m512i a, __m512i b) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtepi32_epi16(a)), _mm512_cvtepi32_epi16(b), 1);
  }

  struct Two {
    Vec<float> first, second;
  };
  // x at two steps' columns. Unpacking interleaves fours of words, so the columns are put in that order first.
  Two pick(__m256i columns) const {
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    const __m512i at = _mm512_cvtepu8_epi16(_mm256_permutexvar_epi32(order, columns));
    const __mmask32 upper = _mm512_test_epi16_mask(at, _mm512_set1_epi16(64));
    const __m512i low = pick(low_, at, upper), high = pick(high_, at, upper);
    return {{(Vec<float>::Register)_mm512_unpacklo_epi16(low, high)},
            {(Vec<float>::Register)_mm512_unpackhi_epi16(low, high)}};
  }
  static __m512i pick(const __m512i* words, __m512i at, __mmask32 upper) {
    return _mm512_mask_mov_epi16(_mm512_permutex2var_epi16(words[0], at, words[1]), upper,
                                 _mm512_permutex2var_epi16(words[2], at, words[3]));
  }

  __m512i low_[4], high_[4];
};

#else

class Tile {
 public:
  explicit Tile(const float* x) : x_(x) {}

  template <class T>
  void dots(const T* values, const uint8_t* columns, int64_t steps, float* sums) const {
    using V = Vec<float>;
    constexpr int registers = slice_rows / V::width;
    V sum[registers] = {};
    for (int64_t i = 0; i < steps; ++i, values += slice_rows, columns += slice_rows)
      unroll<registers>([&](auto r) CREST_INLINE {
        uint64_t packed = 0;  // columns by one load: loads bound this loop
        std::memcpy(&packed, columns + r * V::width, V::width);
        if constexpr (r == 0) prefetch(values);
        V x;
        unroll<V::width>([&](auto l) CREST_INLINE { x.v[int{l}] = x_[packed >> 8 * l & 255]; });
        sum[r] = fma(V::load(values + r * V::width), x, sum[r]);
      });
    for (int r = 0; r < registers; ++r) sum[r].store(sums + r * V::width);
  }

 private:
  const float* x_;
};

#endif

// sums[row] += the products of a cell with x.
template <class T>
inline void add_cell(const SparseLinear& a, int64_t cell, const Tile& x, float* sums) {
  for (int64_t slice = a.slices[cell]; slice < a.slices[cell + 1]; ++slice) {
    const int64_t first = slice_rows * a.steps[slice];
    float dots[slice_rows];
    x.dots(static_cast<const T*>(a.values) + first, a.columns + first, a.steps[slice + 1] - a.steps[slice], dots);
    for (int l = 0; l < slice_rows; ++l) sums[a.rows[slice * slice_rows + l]] += dots[l];
  }
}

// ---- more rows: panels ----

// A tile of a panel, read without order, must leave room for what else passes through the first level of cache.
constexpr int64_t panel_rows = register_bytes == 64 ? 64 : 32;
static_assert(panel_rows <= widest_panel);

// Blocks that a tile of a panel meets before the next tile.
constexpr int64_t blocks_together = 2;

// A row of a panel: width numbers. `held` registers of sums for each of `together` rows of weight hide the latency of
// an fma, and are as many as the small register files of SSE2 and AVX2 have room for.
template <int size>
struct PanelRow {
  static constexpr int width = size;
  using V = Vec<float, min(register_bytes, 4 * width)>;
  static constexpr int registers = width / V::width, held = min(registers, 8), together = 8 / held;
};

// f(PanelRow{}) of a panel of `rows` or more.
template <class F>
inline void with_row(int64_t rows, const F& f) {
  if constexpr (panel_rows > 32)
    if (rows > 32) return f(PanelRow<64>{});
  if (rows > 16) return f(PanelRow<32>{});
  if (rows > 8) return f(PanelRow<16>{});
  return f(PanelRow<8>{});
}

// f(PanelRow{}, first row of x) for each panel.
template <class F>
inline void for_each_panel(const SparseLinear& a, const F& f) {
  for (int64_t row = 0; row < a.n; row += panel_rows) with_row(a.n - row, [&](auto width) { f(width, row); });
}

inline const float* decode(const float* values, int64_t, float*) { return values; }
template <class T>
inline const float* decode(const T* values, int64_t count, float* to) {
  for (int64_t i = 0; i < count; i += Vec<float>::width) Vec<float>::load(values + i).store(to + i);
  return to;
}

// all(p[0]) and all(p[1]) by one load.
template <class V, int... lane>
CREST_INLINE inline void all_of_two(const float* p, V* w, std::integer_sequence<int, lane...>) {
  int64_t bits;
  std::memcpy(&bits, p, sizeof bits);
  const auto two = (typename V::Register)Vec<int64_t, sizeof(V)>::all(bits).v;
  w[0].v = __builtin_shufflevector(two, two, (lane & ~1)...);
  w[1].v = __builtin_shufflevector(two, two, (lane | 1)...);
}

// y[row] (width) += the products of a slice with x (columns of a tile, width).
template <class Row>
inline void add_slice(Row, const float* values, const uint8_t* columns, const uint8_t* rows, int64_t steps,
                      const float* x, float* y) {
  using V = typename Row::V;
  constexpr int together = Row::together, held = Row::held;
  for (int lane = 0; lane < slice_rows; lane += together) {
    float* at[together];
    for (int t = 0; t < together; ++t) at[t] = y + rows[lane + t] * Row::width;
    for (int first = 0; first < Row::width; first += held * V::width) {
      V sum[together][held];
      // GCC would keep the sums in memory, and copy them there and back, if it were not told what each index is.
      const auto each = [](const auto& f) CREST_INLINE {
        unroll<together>([&](auto t) CREST_INLINE { unroll<held>([&](auto r) CREST_INLINE { f(t, r); }); });
      };
      each([&](auto t, auto r) CREST_INLINE { sum[t][r] = V::load(at[t] + first + r * V::width); });
      const float* v = values + lane;
      const uint8_t* c = columns + lane;
      for (int64_t i = 0; i < steps; ++i, v += slice_rows, c += slice_rows) {
        // Loads bound this loop: one of them brings the columns of all rows, and one the values of two. But shuffles
        // of 64 bytes take a turn of the two units that multiply, so that half of the values are better loaded alone.
        uint64_t packed = 0;
        std::memcpy(&packed, c, together);
        V w[2];
        unroll<together>([&](auto t) CREST_INLINE {
          if constexpr (together == 1 || (register_bytes == 64 && (together == 2 || t % 4 > 1)))
            w[t % 2] = V::all(v[t]);
          else if constexpr (t % 2 == 0)
            all_of_two(v + t, w, std::make_integer_sequence<int, V::width>{});
          const float* from = x + (packed >> 8 * t & 255) * Row::width + first;
          unroll<held>([&](auto r) CREST_INLINE { sum[t][r] = w[t % 2] * V::load(from + r * V::width) + sum[t][r]; });
        });
      }
      each([&](auto t, auto r) CREST_INLINE { sum[t][r].store(at[t] + first + r * V::width); });
    }
  }
}

#if defined(__AVX512F__)
// By rows of eight numbers: two of them in a register, so that one fma serves a non-zero of each of two rows of weight.
inline void add_slice(PanelRow<8>, const float* values, const uint8_t* columns, const uint8_t* rows, int64_t steps,
                      const float* x, float* y) {
  constexpr int pairs = slice_rows / 2;
  const auto two = [](const float* p, const float* q) CREST_INLINE {
    const __m512d low = _mm512_castpd256_pd512(_mm256_loadu_pd(reinterpret_cast<const double*>(p)));
    return _mm512_castpd_ps(_mm512_insertf64x4(low, _mm256_loadu_pd(reinterpret_cast<const double*>(q)), 1));
  };
  const auto row = [&](int lane) CREST_INLINE { return y + int64_t{rows[lane]} * 8; };
  __m512 sum[pairs];
  const __m512i halves = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
  __m512i at[pairs];  // of the values of each two rows
  unroll<pairs>([&](auto p) CREST_INLINE {
    sum[p] = two(row(2 * p), row(2 * p + 1));
    at[p] = _mm512_add_epi32(_mm512_set1_epi32(2 * p), halves);
  });
  // Distances by way of memory: cut out of a register, a column takes twice as many instructions. All of them before
  // the first is used: a load that waits for its store takes longer than it saves.
  alignas(32) uint16_t distances[tile_columns * slice_rows];
  for (int64_t i = 0; i < steps; ++i, columns += slice_rows) {
    const __m256i wide = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(columns)));
    _mm256_store_si256(reinterpret_cast<__m256i*>(distances + i * slice_rows), _mm256_slli_epi16(wide, 3));
  }
  for (int64_t i = 0; i < steps; ++i, values += slice_rows) {
    const __m512 v = _mm512_loadu_ps(values);
    const uint16_t* d = distances + i * slice_rows;
    unroll<pairs>([&](auto p) CREST_INLINE {
      sum[p] = _mm512_fmadd_ps(_mm512_permutexvar_ps(at[p], v), two(x + d[2 * p], x + d[2 * p + 1]), sum[p]);
    });
  }
  unroll<pairs>([&](auto p) CREST_INLINE {
    _mm256_storeu_ps(row(2 * p), _mm512_castps512_ps256(sum[p]));
    _mm256_storeu_pd(reinterpret_cast<double*>(row(2 * p + 1)), _mm512_extractf64x4_pd(_mm512_castps_pd(sum[p]), 1));
  });
}
#endif

// y (n, m) from sums (rows, width), which are rows [first, first + rows) of weight and row `at` of x and on.
template <class Row>
inline void finish(Row, const SparseLinear& a, const float* sums, int64_t at, int64_t first, int64_t rows) {
  using V = typename Row::V;
  float* y = a.y + at * a.m + first;
  const int64_t n = min<int64_t>(a.n - at, Row::width);
  const int64_t whole = rows - rows % V::width;
  for (int64_t r = 0; r < n; r += V::width)
    for (int64_t i = 0; i < whole; i += V::width) {
      const V bias = a.bias ? V::load(a.bias + first + i) : V::zero();
      V square[V::width];
      unroll<V::width>([&](auto l) CREST_INLINE { square[l] = V::load(sums + (i + l) * Row::width + r); });
      transpose(square);
      unroll<V::width>([&](auto l) CREST_INLINE {
        if (r + l >= n) return;
        activate(square[l] + bias, a.activation).store(y + (r + l) * a.m + i);
      });
    }
  for (int64_t i = whole; i < rows; ++i)
    for (int64_t r = 0; r < n; ++r) y[r * a.m + i] = finished(a, sums[i * Row::width + r], first + i);
}

}  // namespace

void sparse_linear_few(const SparseLinear& a, int64_t begin, int64_t end) {
  const Share share(a, begin, end);
  for (int64_t block = share.first; block < share.last; ++block) {
    const int64_t first = block * a.block_rows, rows = min(a.m - first, a.block_rows);
    for (int64_t i = 0; i < a.n; ++i) {
      float sums[most_block_rows] = {}, padded[tile_columns];
      for (int64_t tile = 0; tile < a.tiles; ++tile) {
        const float* x = a.x + i * a.k + tile * tile_columns;
        const int64_t width = a.k - tile * tile_columns;
        if (width < tile_columns) {
          for (int64_t j = 0; j < tile_columns; ++j) padded[j] = j < width ? x[j] : 0;
          x = padded;
        }
        dispatch(a.dtype,
                 [&](auto type) { add_cell<typename decltype(type)::type>(a, block * a.tiles + tile, Tile(x), sums); });
      }
      for (int64_t r = 0; r < rows; ++r) a.y[i * a.m + first + r] = finished(a, sums[r], first + r);
    }
  }
}

void sparse_linear_pack(const SparseLinear& a, float* panels, int64_t begin, int64_t end) {
  for_each_panel(a, [&](auto row, int64_t at) {
    using V = typename decltype(row)::V;
    const float* x = a.x + at * a.k;
    float* panel = panels + at * a.k;
    const int64_t n = min<int64_t>(a.n - at, row.width);
    const int64_t whole = end - (end - begin) % V::width;
    for (int64_t r = 0; r < row.width; r += V::width)
      for (int64_t j = begin; j < whole; j += V::width) {
        V square[V::width];
        unroll<V::width>([&](auto l)
                             CREST_INLINE { square[l] = r + l < n ? V::load(x + (r + l) * a.k + j) : V::zero(); });
        transpose(square);
        unroll<V::width>([&](auto l) CREST_INLINE { square[l].store(panel + (j + l) * row.width + r); });
      }
    for (int64_t j = whole; j < end; ++j)
      for (int64_t r = 0; r < row.width; ++r) panel[j * row.width + r] = r < n ? x[r * a.k + j] : 0;
  });
}

void sparse_linear_panels(const SparseLinear& a, const float* panels, int64_t begin, int64_t end) {
  const Share share(a, begin, end);
  for (int64_t block = share.first; block < share.last; block += blocks_together) {
    const int64_t blocks = min(blocks_together, share.last - block);
    const int64_t first = block * a.block_rows, rows = min(a.m - first, blocks * a.block_rows);
    for_each_panel(a, [&](auto row, int64_t at) {
      alignas(64) float sums[blocks_together * most_block_rows * row.width], decoded[tile_columns * slice_rows];
      std::memset(sums, 0, blocks * a.block_rows * row.width * sizeof(float));
      for (int64_t tile = 0; tile < a.tiles; ++tile) {
        const float* x = panels + at * a.k + tile * tile_columns * row.width;
        const char* next = reinterpret_cast<const char*>(x + tile_columns * row.width);
        for (int64_t b = 0; b < blocks; ++b) {
          const int64_t cell = (block + b) * a.tiles + tile, slices = a.slices[cell + 1] - a.slices[cell];
          // Rows of the next tile are met in no order that hardware foresees: ask for a share of it in each slice.
          const int64_t lines = tile_columns * row.width * 4 / 64;
          const int64_t ask = (lines - 1) / max(blocks * slices, int64_t{1}) + 1;
          for (int64_t slice = a.slices[cell]; slice < a.slices[cell + 1]; ++slice) {
            for (int64_t line = 0; line < ask; ++line, next += 64) __builtin_prefetch(next, 0, 2);
            const int64_t steps = a.steps[slice + 1] - a.steps[slice], from = slice_rows * a.steps[slice];
            dispatch(a.dtype, [&](auto type) {
              const auto* values = static_cast<const typename decltype(type)::type*>(a.values) + from;
              add_slice(row, decode(values, steps * slice_rows, decoded), a.columns + from, a.rows + slice * slice_rows,
                        steps, x, sums + b * a.block_rows * row.width);
            });
          }
        }
      }
      finish(row, a, sums, at, first, rows);
    });
  }
}

}  // namespace crest::CREST_ISA
