#pragma once
namespace crest {

enum class Activation { none, relu, relu6 };

}  // namespace crest
