#include "../group_soft_threshold.h"

#include "group_sums.h"

namespace crest::CREST_ISA {
namespace {

// f(Of<T>{}, weight, sums, threshold, l1) with the types of the arguments.
template <class F>
inline void typed(const GroupSoftThreshold& a, const F& f) {
  dispatch(a.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    using A = Acc<T>;
    f(static_cast<T*>(a.weight), static_cast<A*>(a.sums), A(a.threshold), A(a.l1));
  });
}

// Of a group by its norm. 0 only where all of the group is finite: a NaN must not vanish.
template <class A>
inline A factor(A sum_of_squares, A threshold) {
  const A norm = sqrt(sum_of_squares);
  return norm <= threshold ? 0 : 1 - threshold / norm;
}

// x = S(x) factor. Adding 0 turns -0 into 0.
template <class T, class V, class A>
inline void shrink(T* x, V by, A l1) {
  (soft_threshold(V::load(x), l1) * by + V::zero()).store(x);
}

}  // namespace

void group_soft_threshold(const GroupSoftThreshold& a, int64_t begin, int64_t end) {
  typed(a, [&](auto* weight, auto*, auto threshold, auto l1) {
    using A = decltype(l1);
    const int64_t inner = a.groups.inner;
    for (int64_t g = begin; g < end; ++g) {
      auto* group = weight + g * inner;
      const A by = factor(sum_of_squares(group, inner, l1), threshold);
      for_each_register<A>(0, inner, [&](auto v, int64_t i) { shrink(group + i, decltype(v)::all(by), l1); });
    }
  });
}

void group_soft_threshold_sums(const GroupSoftThreshold& a, int64_t begin, int64_t end) {
  typed(a, [&](const auto* weight, auto* sums, auto, auto l1) { column_sums(weight, a.groups, l1, sums, begin, end); });
}

void group_soft_threshold_factors(const GroupSoftThreshold& a) {
  typed(a, [&](auto*, auto* sums, auto threshold, auto) {
    using A = decltype(threshold);
    for_each_sum(a.groups, sums, [&](int64_t g, A sum) {
      const A by = factor(sum, threshold);
      for (int64_t i = 0; i < a.groups.inner; ++i) sums[g * a.groups.inner + i] = by;
    });
  });
}

void group_soft_threshold_rows(const GroupSoftThreshold& a, int64_t begin, int64_t end) {
  typed(a, [&](auto* weight, const auto* factors, auto, auto l1) {
    const int64_t width = a.groups.width();
    for (int64_t row = begin; row < end; ++row)
      for_each_register<decltype(l1)>(0, width, [&](auto v, int64_t j) {
        auto* x = weight + row * width + j;
        prefetch(x);
        shrink(x, decltype(v)::load(factors + j), l1);
      });
  });
}

}  // namespace crest::CREST_ISA
