#pragma once
// What masked_linear and its gradients share: matrices, and on the CPU the choice of a regime and panels.
#include "check.h"
#include "panels.h"
#include "scratch.h"

namespace crest {

// t itself where it is contiguous: each call through the dispatcher takes a part of a small layer's time.
Tensor as_contiguous(const Tensor& t);

// (..., k) as a contiguous (n, k), and a new (..., size).
Tensor as_matrix(const Tensor& t);
Tensor new_with_last(const Tensor& t, int64_t size);

// The share of kept weights, from 8192 of them in 128 places all over the mask: half a percent off at most times, and
// at no cost that counts. A wrong guess costs time, never a wrong result.
double density(const Tensor& mask);

// The kernels an op chooses from, by its rows and the density of its mask: what is measured of each op is where the
// first overtake the second (both bounds are included) and the second the third.
enum class Regime { few, sparse, dense };
struct Bounds {
  int64_t always_few;      // up to so many rows one pass over weight and mask is the fastest, whatever the density
  double few_or_sparse;    // density, for up to few_rows rows
  double sparse_or_dense;  // density, for more
};
Regime choose(const Bounds& bounds, int64_t n, const Tensor& mask);

// Memory for panels of matrices of n rows and in all so many features. There can be one at a time.
class PanelScratch {
 public:
  PanelScratch(int64_t n, int64_t features, Dtype dtype);
  Panels take(int64_t k);                            // uninitialised
  Panels packed(const Tensor& matrix, Dtype dtype);  // (n, k)

 private:
  int64_t n_, row_;
  Scratch scratch_;
  float* next_;
};
void unpack(const Panels& panels, const Tensor& matrix, Dtype dtype);

// out (rows, columns) = that block of weight where mask, else 0.
void apply_mask_block(const Tensor& weight, const Tensor& mask, Dtype dtype, int64_t row, int64_t column,
                      const Tensor& out);

// Asks for huge pages for a large new tensor: filling one page of 4 KiB after the other for the first time can take
// longer than the product that fills them. Only advice, and only on Linux.
void prefer_huge_pages(const Tensor& t);

// How many rows of `row_bytes` make a scratch that stays in cache.
int64_t cached_rows(int64_t row_bytes);

}  // namespace crest
