#pragma once
// truncated_svd: the largest singular values of matrices, and their vectors
#include "dtype.h"
#include "isa.h"

namespace crest {

// What became of a matrix. Not found: only a decomposition of its whole Gram matrix can tell.
enum class Search : char { found, not_found, not_finite };

struct TruncatedSvd {
  const void* a;      // (n, r, c)
  void* u;            // (n, r, k)
  void* s;            // (n, k)
  void* vh;           // (n, k, c)
  const void* basis;  // (min(r, c), k): the vectors of the shorter side of one matrix, the last value first; null: none
  Search* state;      // (n,), written
  int64_t n, r, c, k;
  Dtype dtype;           // of a, u, s, vh and basis: float32 or float64
  void* work = nullptr;  // on a GPU: (svd_blocks, svd_numbers), or nothing where that fits into shared memory
};

// Matrices [begin, end), one after the other in the same working memory.
CREST_DECLARE_KERNEL(truncated_svd, const TruncatedSvd&, double* work, int64_t begin, int64_t end)

// ---- the search for singular vectors, which singular_value_threshold shares ----

constexpr int64_t block = 16;  // directions that go through a product together
constexpr int64_t blocks(int64_t n) { return (n + block - 1) / block; }

// The shorter side up to which its Gram matrix is decomposed at once: from there on a search takes less time.
constexpr int64_t small_side = 256;
constexpr int64_t gram_rows = 128;  // of a matrix, for its Gram matrix at a time

// A search for k vectors in q dimensions gives up after this many directions: by then the whole costs less.
constexpr int64_t most_directions(int64_t q, int64_t k) {
  const int64_t most = 6 * blocks(k) * block + q / 2, all = blocks(q) * block;
  return most < all ? most : all;
}
constexpr bool worth_a_search(int64_t q, int64_t k) { return 6 * k <= q; }

// Whether products with the Gram matrix may be worth making it.
constexpr bool gram_may_pay(int64_t p, int64_t q) { return q > small_side && p >= 2 * q; }

// Doubles of working memory to find k vectors.
constexpr int64_t search_work(int64_t r, int64_t c, int64_t k) {
  const int64_t p = r < c ? c : r, q = r < c ? r : c, wide = blocks(k) * block;
  const int64_t m = q <= small_side ? blocks(q) * block : worth_a_search(q, k) ? most_directions(q, k) : 0;
  const int64_t side = m < wide && m > 0 ? wide : m;
  const int64_t g = gram_may_pay(p, q) ? blocks(q) * block * (blocks(q) * block + gram_rows) : 0;
  return p * q + g + 2 * p * wide + q * (2 * wide + m + block) + 4 * side * (side + 8 * block) + gram_rows * side +
         (1 << 17);
}

// ---- on a GPU ----

// The largest matrices that its kernel takes. Where torch's decomposition overtakes it has not been measured.
constexpr int64_t svd_short = 128, svd_long = 4096;

// Numbers that it works on for a matrix: two square ones and the matrix itself, in columns an odd distance apart, so
// that neighbours in a row are in different banks of shared memory.
constexpr int64_t svd_numbers(int64_t r, int64_t c) {
  const int64_t p = r < c ? c : r, q = r < c ? r : c;
  return q * (2 * q + 1 + (p | 1));
}

// As many as fit into shared memory; of more, some or all are in work.
constexpr int64_t svd_shared(Dtype dtype) { return dtype == Dtype::float32 ? 11648 : 5632; }

// Matrices that are worked on at a time: work stays below 2^25 numbers.
constexpr int64_t svd_blocks(int64_t n, int64_t r, int64_t c) {
  const int64_t most = (int64_t{1} << 25) / svd_numbers(r, c);
  return n < most ? n : most;
}

namespace cuda {
void truncated_svd(const TruncatedSvd&, void* stream);
}

}  // namespace crest
