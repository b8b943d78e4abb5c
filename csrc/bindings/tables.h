#pragma once

#include <pybind11/numpy.h>

#include <cstdint>

#include "bindings/registration.h"
#include "common/row_block.h"

namespace mmfl {

using Int64Array = pybind11::array_t<std::int64_t, pybind11::array::c_style | pybind11::array::forcecast>;

// A table of RowBlocks, [grid_rows * segments, 5]; sets grid_rows.
inline const RowBlock* row_blocks(const Int64Array& table, std::int64_t segments, std::int64_t& grid_rows) {
  constexpr std::int64_t kFields = sizeof(RowBlock) / sizeof(std::int64_t);
  const std::int64_t count = table.size() / kFields;
  if (table.size() % kFields != 0 || (segments == 0 ? count != 0 : count % segments != 0))
    throw_unless_ok("row table", Status::kBadShape);
  grid_rows = segments == 0 ? 0 : count / segments;
  return reinterpret_cast<const RowBlock*>(table.data());
}

}  // namespace mmfl
