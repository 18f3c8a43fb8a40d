#pragma once
// A str argument of an op. torch's own way to a std::string, in its releases up to 2.13 at least, leaves a copy behind
// in every call. A copy is 48 bytes, but one of them behind each result keeps malloc from using its memory again.
#include <torch/csrc/stable/library.h>

#include <string>

namespace crest {

struct Text : std::string {
  using std::string::string;
};

}  // namespace crest

template <>
struct torch::stable::detail::ToImpl<crest::Text> {
  static crest::Text call(StableIValue value, uint64_t, bool) {
    const auto handle = to<StringHandle>(value);
    size_t length;
    const char* data;
    TORCH_ERROR_CODE_CHECK(torch_string_length(handle, &length));
    TORCH_ERROR_CODE_CHECK(torch_string_c_str(handle, &data));
    crest::Text text(data, length);
    TORCH_ERROR_CODE_CHECK(torch_delete_string(handle));
    return text;
  }
};
