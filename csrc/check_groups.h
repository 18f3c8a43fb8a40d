#pragma once
// The names of groups.
#include <string>

#include "check.h"
#include "groups.h"

namespace crest {

// ValueError unless weight has 2 dimensions, (n, c, ...), and the name is one of these; a group is
//   filter, row     weight[i]
//   channel         weight[:, j]
//   shape, column   weight[:, j, ...] of one number a row
//   kernel          weight[i, j]
//   layer           weight
Groups check_groups(const char* op, const Tensor& weight, const std::string& name);

}  // namespace crest
