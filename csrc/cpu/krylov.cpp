// What truncated_svd and singular_value_threshold share.
#include "krylov.h"

namespace crest::CREST_ISA {

template int64_t largest(const Tall<float>&, const Wanted&, int64_t, float*, float*, float*, Arena);
template int64_t largest(const Tall<double>&, const Wanted&, int64_t, double*, double*, double*, Arena);

}  // namespace crest::CREST_ISA
