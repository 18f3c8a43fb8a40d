#include "../group_norms.h"

#include "group_sums.h"

namespace crest::CREST_ISA {

void group_norms(const GroupNorms& a, int64_t begin, int64_t end) {
  dispatch(a.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const T* weight = static_cast<const T*>(a.weight);
    T* norms = static_cast<T*>(a.norms);
    const int64_t inner = a.groups.inner;
    for (int64_t g = begin; g < end; ++g) narrow(sqrt(sum_of_squares(weight + g * inner, inner, Acc<T>{0})), norms[g]);
  });
}

void group_norms_sums(const GroupNorms& a, int64_t begin, int64_t end) {
  dispatch(a.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    column_sums(static_cast<const T*>(a.weight), a.groups, Acc<T>{0}, static_cast<Acc<T>*>(a.sums), begin, end);
  });
}

void group_norms_of_sums(const GroupNorms& a) {
  dispatch(a.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    T* norms = static_cast<T*>(a.norms);
    for_each_sum(a.groups, static_cast<Acc<T>*>(a.sums), [&](int64_t g, Acc<T> sum) { narrow(sqrt(sum), norms[g]); });
  });
}

}  // namespace crest::CREST_ISA
