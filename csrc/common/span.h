#pragma once

#include <cstdint>

#include "common/dtype.h"

namespace mmfl {

// One row's elements of one segment.
struct Span {
  const void* data;
  std::int64_t stride;  // in elements
  DType dtype;
};

}  // namespace mmfl
