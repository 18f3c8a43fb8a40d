#pragma once
// h_k of Dynamic Network Surgery (eq. 3): 0 below low, 1 from high on, the old mask between. A NaN weight keeps its
// mask, since no comparison with it holds.

namespace crest::cuda {

template <class A>
__device__ bool hysteresis(A weight, bool mask, A low, A high) {
  const A size = weight < 0 ? -weight : weight;
  return (size >= high) | (mask & !(size < low));
}

}  // namespace crest::cuda
