#pragma once
// truncated_svd by one-sided Jacobi on the triangle of a QR decomposition, one block a matrix.
//
// Let A = Q R be a or its transpose, (p, q) with p >= q. Rotations X make the columns of R^T orthogonal, R^T X = Y S:
// then A = (Q X) S Y^T. The columns of A itself would do, but where values fall fast they take up to three times as
// many sweeps, and each is over p numbers instead of q. Q and X are orthonormal however small a value is; so is Y but
// for columns that are nothing but rounding, and these are replaced.
#include "../truncated_svd.h"
#include "launch.cuh"

namespace crest::cuda {

template <int team, class T>
__device__ T sum_of_team(T sum) {
  for (int half = team / 2; half; half /= 2) sum += __shfl_xor_sync(~0u, sum, half);
  return sum;
}

// What the threads of a block do together. A team of neighbouring lanes takes a column; the teams of a warp take as
// many turns, since lanes meet as whole warps.
template <class T, int threads, int team>
struct Jacobi {
  static_assert(threads % warp == 0 && warp % team == 0);
  static constexpr int teams = threads / team;
  static constexpr T eps = sizeof(T) == 4 ? T(0x1p-23) : T(0x1p-52);

  T* store;    // q columns of 2 q: R^T, then Y S, then Y; under it the rotations X
  T* tall;     // q columns of p: A, then R and the Householder vectors, then Q
  T* values;   // (q,): the diagonal of R, then S
  T *x, *y;    // (q,): of the Householder vectors the first numbers and the factors, then free
  int* order;  // (q,): the columns by descending value
  int p, q, thread;

  __device__ int of_warp() const { return thread / warp * (warp / team); }  // its first team
  __device__ int own() const { return thread % warp / team; }               // this one among its warp's
  __device__ int lane() const { return thread % team; }
  __device__ T* column(int j) const { return store + j * (2 * q + 1); }
  __device__ T* tall_column(int j) const { return tall + j * (p | 1); }

  // The largest |number| of the block's matrix, or NaN if one is; parts (threads / warp,).
  __device__ T largest(const T* a, T* parts) const {
    T most = 0;
    const auto take = [&](T next) { most = next > most || next != next ? next : most; };
    for (int e = thread; e < p * q; e += threads) take(fabs(a[e]));
    for (int half = warp / 2; half; half /= 2) take(__shfl_xor_sync(~0u, most, half));
    if (thread % warp == 0) parts[thread / warp] = most;
    __syncthreads();
    for (int w = 0; w < threads / warp; ++w) take(parts[w]);
    return most;
  }

  // By a power of two: largest numbers in [0.5, 1) have squares that neither overflow nor vanish beside each other.
  __device__ void load(const T* a, bool wide, int exponent) const {
    for (int e = thread; e < p * q; e += threads) {
      const int i = wide ? e % p : e / q, j = wide ? e / p : e % q;
      tall_column(j)[i] = ldexp(a[e], -exponent);
    }
    __syncthreads();
  }

  // The columns after j, from row j on, become (1 - beta v v^T) them, for v = (head, the rest of column j).
  __device__ void reflect(int j, T head, T beta) const {
    const T* v = tall_column(j);
    for (int first = j + 1 + of_warp(); first < q; first += teams) {
      const bool mine = first + own() < q;
      T* to = tall_column(mine ? first + own() : j);
      T sum = lane() == 0 ? head * to[j] : 0;
      for (int i = j + 1 + lane(); i < p && mine; i += team) sum += v[i] * to[i];
      sum = beta * sum_of_team<team>(sum);
      if (mine && lane() == 0) to[j] -= sum * head;
      for (int i = j + 1 + lane(); i < p && mine; i += team) to[i] -= sum * v[i];
    }
  }

  // Householder's QR decomposition, and the columns of R^T with no rotations yet.
  __device__ void triangularise() const {
    for (int j = 0; j < q; ++j) {
      const T* v = tall_column(j);
      const T top = v[j];
      T sum = 0;
      for (int i = j + 1 + lane(); i < p; i += team) sum += v[i] * v[i];
      const T norm = sqrt(top * top + sum_of_team<team>(sum));
      const bool none = norm <= eps * eps;  // its square is close to the smallest number
      const T diagonal = none ? 0 : top > 0 ? -norm : norm;
      const T head = top - diagonal, beta = none ? 0 : 1 / (norm * (norm + fabs(top)));
      reflect(j, head, beta);
      __syncthreads();
      if (thread == 0) values[j] = diagonal, x[j] = head, y[j] = beta;
    }
    __syncthreads();
    for (int e = thread; e < 2 * q * q; e += threads) {
      const int j = e / (2 * q), l = e % (2 * q);
      column(j)[l] = l >= q ? T(l - q == j) : l > j ? tall_column(l)[j] : l == j ? values[j] : 0;
    }
    __syncthreads();
  }

  // Q, from the Householder vectors.
  __device__ void expand() const {
    for (int e = thread; e < q * q; e += threads)
      if (e % q < e / q) tall_column(e / q)[e % q] = 0;
    __syncthreads();
    for (int j = q - 1; j >= 0; --j) {
      reflect(j, x[j], y[j]);
      __syncthreads();
      T* v = tall_column(j);
      for (int i = j + thread; i < p; i += threads) v[i] = T(i == j) - y[j] * x[j] * (i == j ? x[j] : v[i]);
      __syncthreads();
    }
  }

  // Rotates two columns unless they are orthogonal to rounding; whether it did.
  __device__ bool rotate(T* a, T* b, bool mine) const {
    T ab = 0, aa = 0, bb = 0;
    for (int l = lane(); l < q && mine; l += team) ab += a[l] * b[l], aa += a[l] * a[l], bb += b[l] * b[l];
    ab = sum_of_team<team>(ab), aa = sum_of_team<team>(aa), bb = sum_of_team<team>(bb);
    const T least = eps * eps;  // columns below the rounding of the largest value need not be orthogonal: see replace
    const T size = sqrt((aa > least ? aa : least) * (bb > least ? bb : least));
    if (!mine || fabs(ab) <= 4 * eps * size) return false;
    // The smaller of the two angles, by its half angle's tangent: little is lost where a rotation is small.
    const T cot = (bb - aa) / (2 * ab), root = fabs(cot) + sqrt(1 + cot * cot);
    const T tan = cot < 0 ? -1 / root : 1 / root, cos = 1 / sqrt(1 + tan * tan), sin = cos * tan;
    const T half = sin / (1 + cos);
    for (int l = lane(); l < 2 * q; l += team) {
      const T from_a = a[l], from_b = b[l];
      a[l] = from_a - sin * (from_b + half * from_a);
      b[l] = from_b + sin * (from_a - half * from_b);
    }
    return true;
  }

  // Sweeps over all pairs of columns until one rotates none; whether `sweeps` were enough. The rounds of a sweep are
  // those of a tournament: column `last` keeps its place, and the others go round.
  __device__ bool converge(int* turned, int sweeps) const {
    const int last = q - 1 + q % 2, pairs = (last + 1) / 2;
    if (thread == 0) *turned = 0;
    __syncthreads();
    for (int before = 0; sweeps > 0; --sweeps) {
      for (int round = 0; round < last; ++round) {
        for (int first = of_warp(); first < pairs; first += teams) {
          const int pair = first + own();
          const int i = pair == 0 ? last : (round + pair) % last, j = (round - pair + last) % last;
          const bool mine = pair < pairs && i < q && j < q;
          T *a = column(mine ? i : 0), *b = column(mine ? j : 0);
          if (rotate(a, b, mine) && lane() == 0) atomicAdd(turned, 1);
        }
        __syncthreads();
      }
      const int now = *turned;
      __syncthreads();
      if (now == before) return true;
      before = now;
    }
    return false;
  }

  __device__ T norm(const T* v) const {
    T sum = 0;
    for (int l = lane(); l < q; l += team) sum += v[l] * v[l];
    return sqrt(sum_of_team<team>(sum));
  }

  __device__ void sort() const {
    for (int first = of_warp(); first < q; first += teams) {
      const int j = first + own();
      const T value = norm(column(j < q ? j : 0));
      if (j < q && lane() == 0) values[j] = value;
    }
    __syncthreads();
    for (int j = thread; j < q; j += threads) {
      int rank = 0;
      for (int l = 0; l < q; ++l) rank += values[l] > values[j] || (values[l] == values[j] && l < j);
      order[rank] = j;
    }
    __syncthreads();
  }

  // The first k columns of Y.
  __device__ void normalise(int k) const {
    for (int first = of_warp(); first < k; first += teams) {
      const int i = first + own(), j = i < k ? order[i] : 0;
      if (i < k && values[j] > eps)
        for (int l = lane(); l < q; l += team) column(j)[l] /= values[j];
    }
    __syncthreads();
    for (int i = 0; i < k; ++i)
      if (values[order[i]] <= eps) replace(i);
  }

  // The i-th column of Y becomes a direction orthogonal to those before: the unit vector that they leave most of, and
  // their share of it taken off twice.
  __device__ void replace(int i) const {
    T* v = column(order[i]);
    for (int l = thread; l < q; l += threads) {
      T left = 1;
      for (int j = 0; j < i; ++j) left -= column(order[j])[l] * column(order[j])[l];
      x[l] = left;
    }
    __syncthreads();
    int best = 0;
    for (int l = 1; l < q; ++l) best = x[l] > x[best] ? l : best;
    for (int l = thread; l < q; l += threads) v[l] = T(l == best);
    __syncthreads();
    for (int time = 0; time < 2; ++time) {
      for (int first = of_warp(); first < i; first += teams) {
        const int j = first + own();
        const T* other = column(order[j < i ? j : 0]);
        T sum = 0;
        for (int l = lane(); l < q; l += team) sum += other[l] * v[l];
        sum = sum_of_team<team>(sum);
        if (j < i && lane() == 0) y[j] = sum;
      }
      __syncthreads();
      for (int l = thread; l < q; l += threads)
        for (int j = 0; j < i; ++j) v[l] -= y[j] * column(order[j])[l];
      __syncthreads();
    }
    const T size = norm(v);
    __syncthreads();
    for (int l = thread; l < q; l += threads) v[l] /= size;
    __syncthreads();
  }

  // Q X, the values and Y, as u, s and vh or, of a matrix that is wide, the other way round.
  __device__ void write(T* u, T* s, T* vh, int k, bool wide, int exponent) const {
    for (int i = thread; i < k; i += threads) s[i] = ldexp(values[order[i]], exponent);
    T *of_tall = wide ? vh : u, *of_short = wide ? u : vh;
    for (int e = thread; e < q * k; e += threads) {
      const int l = wide ? e / k : e % q, j = wide ? e % k : e / q;
      of_short[e] = column(order[j])[l];
    }
    constexpr int width = 4;  // columns of Q X from one column of numbers of Q
    for (int e = thread; e < (k + width - 1) / width * p; e += threads) {
      const int i = e % p, first = e / p * width;
      T sums[width] = {};
      const T* rotations[width];
      for (int j = 0; j < width; ++j) rotations[j] = column(order[first + j < k ? first + j : first]) + q;
      for (int l = 0; l < q; ++l) {
        const T number = tall_column(l)[i];
        for (int j = 0; j < width; ++j) sums[j] += number * rotations[j][l];
      }
      for (int j = 0; j < width && first + j < k; ++j)
        of_tall[wide ? (first + j) * p + i : i * k + first + j] = sums[j];
    }
  }
};

// For matrices of a shorter side of up to `most`. What does not fit into `capacity` numbers is in a.work. About ten
// sweeps are enough; more than `sweeps` are given up.
template <class T, int threads, int team, int most, int capacity>
__global__ void __launch_bounds__(threads, 1024 / threads)
    truncated_svd_kernel(const TruncatedSvd a, const int sweeps) {
  CREST_SHARED(T, store, [capacity]);
  CREST_SHARED(T, vectors, [3][most]);
  CREST_SHARED(int, order, [most]);
  CREST_SHARED(T, parts, [threads / warp]);
  CREST_SHARED(int, turned, [1]);
  const bool wide = a.r < a.c;
  const int p = static_cast<int>(wide ? a.c : a.r), q = static_cast<int>(wide ? a.r : a.c), k = static_cast<int>(a.k);
  const int columns = q * (2 * q + 1), both = columns + q * (p | 1);
  T* work = static_cast<T*>(a.work) + int64_t{blockIdx.x} * both;
  const Jacobi<T, threads, team> jacobi{columns <= capacity ? store : work,
                                        both <= capacity ? store + columns : work + columns,
                                        vectors[0],
                                        vectors[1],
                                        vectors[2],
                                        order,
                                        p,
                                        q,
                                        static_cast<int>(threadIdx.x)};
  for (int64_t i = blockIdx.x; i < a.n; i += gridDim.x) {
    const T* matrix = static_cast<const T*>(a.a) + i * p * q;
    const T largest = jacobi.largest(matrix, parts);
    Search state = Search::not_finite;
    if (largest < T(INFINITY)) {
      int exponent;
      frexp(largest, &exponent);
      jacobi.load(matrix, wide, exponent);
      jacobi.triangularise();
      jacobi.expand();
      state = jacobi.converge(turned, sweeps) ? Search::found : Search::not_found;
      jacobi.sort();
      jacobi.normalise(k);
      jacobi.write(static_cast<T*>(a.u) + i * a.r * k, static_cast<T*>(a.s) + i * k,
                   static_cast<T*>(a.vh) + i * k * a.c, k, wide, exponent);
    }
    if (jacobi.thread == 0) a.state[i] = state;
    __syncthreads();
  }
}

template <class T, int threads, int team, int most, int capacity>
void truncated_svd(const TruncatedSvd& a, void* stream, int64_t blocks, int sweeps = 40) {
  launch("truncated_svd", truncated_svd_kernel<T, threads, team, most, capacity>, blocks, threads, stream, a, sweeps);
}

template <class T>
void truncated_svd(const TruncatedSvd& a, void* stream) {
  const int64_t q = a.r < a.c ? a.r : a.c, numbers = svd_numbers(a.r, a.c), blocks = svd_blocks(a.n, a.r, a.c);
  constexpr Dtype dtype = sizeof(T) == 4 ? Dtype::float32 : Dtype::float64;
  if (q <= 16 && numbers <= 1056) return truncated_svd<T, 64, 8, 16, 1056>(a, stream, blocks);
  if (q <= 32 && numbers <= 4192) return truncated_svd<T, 128, 16, 32, 4192>(a, stream, blocks);
  truncated_svd<T, 512, 32, svd_short, svd_shared(dtype)>(a, stream, blocks);
}

}  // namespace crest::cuda
