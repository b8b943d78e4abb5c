#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <vector>

#include "common/row_block.h"

namespace mmfl {

// The tensors of K long rows, a grid as mmfl_fast/kernels/rows.py describes it, ready for a kernel.
class RowGrid {
 public:
  // A tensor whose rows have no single inner stride is copied to a contiguous one; no other is. Those that
  // are not copied have to outlive this.
  RowGrid(const pybind11::list& tensors, std::int64_t segments, bool stacked);

  const RowBlock* blocks() const { return blocks_.data(); }            // [grid_rows, segments]
  const std::vector<std::int64_t>& widths() const { return widths_; }  // [segments]
  std::int64_t grid_rows() const { return grid_rows_; }

 private:
  void add(pybind11::handle tensor, std::int64_t segment);

  bool stacked_;
  std::vector<RowBlock> blocks_;
  std::vector<std::int64_t> widths_;
  std::int64_t grid_rows_;
  std::vector<pybind11::object> copies_;
};

}  // namespace mmfl
