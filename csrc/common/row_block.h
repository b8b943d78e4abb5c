#pragma once

#include <cstdint>

#include "common/dtype.h"

namespace mmfl {

// `rows` consecutive rows of one segment: row r starts at data + r * row_stride, its elements lie
// `stride` apart. Strides count elements. A grid of these describes any form of rows without a copy.
struct RowBlock {
  const void* data;
  std::int64_t rows;
  std::int64_t row_stride;
  std::int64_t stride;
  DType dtype;
};

}  // namespace mmfl
