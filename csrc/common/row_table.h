#pragma once

#include <cstdint>
#include <vector>

#include "common/row_block.h"
#include "common/span.h"
#include "common/status.h"

namespace mmfl {

// Rows as a table of spans: row k's segment s is spans[k * segments + s].
struct RowTable {
  std::int64_t rows = 0;
  std::int64_t segments = 0;
  std::vector<Span> spans;
};

// Expands a grid of blocks, [grid_rows, segments] row-major, into one span per row and segment.
// `widths` [segments] are the elements of one row in each segment.
Status make_row_table(const RowBlock* blocks, std::int64_t grid_rows, std::int64_t segments,
                      const std::int64_t* widths, RowTable& table);

}  // namespace mmfl
