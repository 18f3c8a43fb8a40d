#pragma once
// y = a b + bias, where a mask drops entries of b: the tile that masked_linear and masked_linear_grad_x share. A block
// computes rows x cols of y. Groups of its threads share out the lines of a and b, for with few rows there are few
// tiles, and it takes many threads to keep the memory busy. A thread sums 4 x 4 products. While its group multiplies
// one slice of a and b out of shared memory, the next is on its way from device memory to registers; what the mask
// drops becomes zero there.
#include "dtype.cuh"
#include "launch.cuh"

namespace crest::cuda {

// A row-major matrix, read four neighbours of a row at a time. Zero outside.
template <class T, bool packed, bool masked>
struct Matrix {
  const T* data;
  const bool* mask;
  int64_t rows, cols;

  __device__ Pack<Acc<T>, 4> quad(int64_t row, int64_t col) const {
    Pack<Acc<T>, 4> x{};
    const int64_t at = row * cols + col;
    if constexpr (packed) {  // cols is a multiple of four
      if (row < rows && col < cols) {
        const auto from = load<4>(data + at);
        const auto keep = masked ? load<4>(mask + at) : Pack<bool, 4>{true, true, true, true};
        for (int i = 0; i < 4; ++i) x.v[i] = keep.v[i] ? widen(from.v[i]) : Acc<T>{0};
      }
    } else {
      for (int i = 0; i < 4; ++i)
        if (row < rows && col + i < cols && (!masked || mask[at + i])) x.v[i] = widen(data[at + i]);
    }
    return x;
  }
};

// Where shared memory keeps column c of line l. A warp that writes quads across the lines holds eight columns of four
// lines each, and of the next four lines the same columns: moved by eight, they fall into other banks.
template <int extent>
__device__ int swizzle(int l, int c) {
  return c ^ (l / 4 % (extent / 8) * 8);
}

// A slice of one operand, `depth` lines of `extent`, on its way from device to shared memory. The lines run across the
// matrix if `across` (x and weight of masked_linear, (extent, depth)), else along it ((depth, extent)).
template <class T, bool across, int extent, int depth, int threads>
struct Slice {
  static constexpr int quads = extent * depth / 4 / threads;
  static_assert(quads * threads * 4 == extent * depth, "a slice is the same number of quads for each thread");
  Pack<Acc<T>, 4> held[quads];

  template <class Source>
  __device__ void fetch(const Source& from, int64_t first, int64_t line, int thread) {
    for (int q = 0; q < quads; ++q) {
      const int i = q * threads + thread;
      held[q] = across ? from.quad(first + i / (depth / 4), line + i % (depth / 4) * 4)
                       : from.quad(line + i / (extent / 4), first + i % (extent / 4) * 4);
    }
  }

  __device__ void put(Acc<T> (&to)[depth][extent], int thread) const {
    for (int q = 0; q < quads; ++q) {
      const int i = q * threads + thread;
      if constexpr (across) {
        const int l = i % (depth / 4) * 4, c = swizzle<extent>(l, i / (depth / 4));
        for (int j = 0; j < 4; ++j) to[l + j][c] = held[q].v[j];
      } else {
        const int l = i / (extent / 4);
        store(&to[l][swizzle<extent>(l, i % (extent / 4) * 4)], held[q]);
      }
    }
  }
};

// a is (n, lines); b is (m, lines) if transposed, else (lines, m); bias is (m,) or nullptr; y is (n, m).
template <class T, bool transposed, int rows, int cols, int groups, bool packed>
__global__ void __launch_bounds__(groups * rows * cols / 16, 1)
    masked_product_kernel(const Matrix<T, packed, false> a, const Matrix<T, packed, true> b, const T* bias, T* y,
                          const int64_t n, const int64_t m, const int64_t lines) {
  using A = Acc<T>;
  constexpr int depth = 64 / sizeof(A), threads = rows * cols / 16;
  CREST_SHARED(A, tile_a, [groups][depth][rows]);
  CREST_SHARED(A, tile_b, [groups][depth][cols]);
  CREST_SHARED(A, partial, [16][threads]);
  Slice<T, true, rows, depth, threads> slice_a;
  Slice<T, transposed, cols, depth, threads> slice_b;

  const int64_t tiles = (m + cols - 1) / cols;
  const int64_t first_row = blockIdx.x / tiles * rows, first_col = blockIdx.x % tiles * cols;
  const int group = static_cast<int>(threadIdx.x) / threads, thread = static_cast<int>(threadIdx.x) % threads;
  const int row = thread / (cols / 4) * 4, col = thread % (cols / 4) * 4;
  A sums[16] = {};

  const auto fetch = [&](int64_t line) {
    slice_a.fetch(a, first_row, line + group * depth, thread);
    slice_b.fetch(b, first_col, line + group * depth, thread);
  };
  fetch(0);
  for (int64_t line = 0; line < lines; line += groups * depth) {
    slice_a.put(tile_a[group], thread);
    slice_b.put(tile_b[group], thread);
    __syncthreads();
    if (line + groups * depth < lines) fetch(line + groups * depth);
#pragma unroll 8
    for (int l = 0; l < depth; ++l) {
      const auto u = load<4>(&tile_a[group][l][swizzle<rows>(l, row)]);
      const auto v = load<4>(&tile_b[group][l][swizzle<cols>(l, col)]);
      for (int i = 0; i < 16; ++i) sums[i] += u.v[i / 4] * v.v[i % 4];
    }
    __syncthreads();
  }

  for (int from = 1; from < groups; ++from) {
    for (int i = 0; i < 16; ++i)
      if (group == from) partial[i][thread] = sums[i];
    __syncthreads();
    for (int i = 0; i < 16; ++i)
      if (group == 0) sums[i] += partial[i][thread];
    __syncthreads();
  }
  if (group > 0) return;
  for (int i = 0; i < 16; ++i) {
    const int64_t r = first_row + row + i / 4, c = first_col + col + i % 4;
    if (r < n && c < m) narrow(sums[i] + (bias ? widen(bias[c]) : A{0}), y[r * m + c]);
  }
}

template <class T, bool transposed, int rows, int cols, int groups>
void masked_product(const char* op, const void* a, const void* weight, const bool* mask, const void* bias, void* y,
                    int64_t n, int64_t m, int64_t lines, void* stream) {
  const T *from = static_cast<const T*>(a), *w = static_cast<const T*>(weight);
  const int64_t blocks = ceil_div(n, rows) * ceil_div(m, cols), w_rows = transposed ? m : lines,
                w_cols = transposed ? lines : m;
  const auto run = [&](auto packed) {
    launch(op, masked_product_kernel<T, transposed, rows, cols, groups, packed.value>, blocks,
           groups * rows * cols / 16, stream, Matrix<T, packed.value, false>{from, nullptr, n, lines},
           Matrix<T, packed.value, true>{w, mask, w_rows, w_cols}, static_cast<const T*>(bias), static_cast<T*>(y), n,
           m, lines);
  };
  const bool packed = lines % 4 == 0 && w_cols % 4 == 0 && aligned<4>(from) && aligned<4>(w) && aligned<4>(mask);
  if (packed)
    run(std::true_type{});
  else
    run(std::false_type{});
}

}  // namespace crest::cuda
