#include "common/row_table.h"

namespace mmfl {

Status make_row_table(const RowBlock* blocks, std::int64_t grid_rows, std::int64_t segments,
                      const std::int64_t* widths, RowTable& table) {
  if (grid_rows < 0 || segments < 0) return Status::kBadShape;
  if (segments > 0 && (widths == nullptr || (grid_rows > 0 && blocks == nullptr)))
    return Status::kNullPointer;
  for (std::int64_t s = 0; s < segments; ++s)
    if (widths[s] < 0) return Status::kBadShape;
  table.segments = segments;
  for (std::int64_t b = 0; b < grid_rows; ++b) {
    const RowBlock* line = blocks + b * segments;
    for (std::int64_t s = 0; s < segments; ++s) {
      if (line[s].rows < 0 || line[s].rows != line[0].rows) return Status::kBadShape;
      if (!is_known(line[s].dtype)) return Status::kBadDtype;
      if (line[s].data == nullptr && line[s].rows > 0 && widths[s] > 0) return Status::kNullPointer;
    }
    const std::int64_t rows = segments > 0 ? line[0].rows : 0;
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t s = 0; s < segments; ++s) {
        const auto* data = static_cast<const char*>(line[s].data);
        if (data != nullptr) data += r * line[s].row_stride * size_of(line[s].dtype);
        table.spans.push_back({data, line[s].stride, line[s].dtype});
      }
    }
    table.rows += rows;
  }
  return Status::kOk;
}

}  // namespace mmfl
