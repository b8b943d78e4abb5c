#include <vector>

#include "common/row_table.h"
#include "common/thread_pool.h"
#include "mix/mix.h"

namespace mmfl {

Status mix_cpu(const MixArgs& args) {
  RowTable table;
  const Status status = make_row_table(args.blocks, args.grid_rows, args.segments, args.widths, table);
  if (status != Status::kOk) return status;
  if (args.matrix_rows < 0 || args.matrix_columns != table.rows) return Status::kBadShape;
  if (args.matrix_rows == 0) return Status::kOk;
  if (table.rows > 0 && args.matrix == nullptr) return Status::kNullPointer;

  std::vector<std::int64_t> taking_part;
  bool reads_once = true;
  for (std::int64_t k = 0; k < table.rows; ++k) {
    std::int64_t reads = 0;
    for (std::int64_t r = 0; r < args.matrix_rows; ++r) reads += args.matrix[r * table.rows + k] != 0;
    if (reads > 0) taking_part.push_back(k);
    reads_once = reads_once && reads <= 1;
  }
  const auto rows = static_cast<std::int64_t>(taking_part.size());
  std::vector<double> matrix;
  for (std::int64_t r = 0; r < args.matrix_rows; ++r)
    for (const std::int64_t k : taking_part) matrix.push_back(args.matrix[r * table.rows + k]);
  std::vector<double> row_offset;
  if (args.row_offset != nullptr)
    for (const std::int64_t k : taking_part) row_offset.push_back(args.row_offset[k]);
  std::vector<Span> spans;
  for (std::int64_t s = 0; s < args.segments; ++s)
    for (const std::int64_t k : taking_part) spans.push_back(table.spans[k * args.segments + s]);

  std::vector<MixSegment> segments;
  double products = 0;
  for (std::int64_t s = 0; s < args.segments; ++s) {
    const RowBlock& output = args.outputs[s];
    if (!is_known(output.dtype)) return Status::kBadDtype;
    if (output.rows != args.matrix_rows || output.stride != 1) return Status::kBadShape;
    if (output.data == nullptr && args.widths[s] > 0) return Status::kNullPointer;
    MixSegment segment;
    segment.spans = spans.data() + s * rows;
    segment.matrix = matrix.data();
    segment.row_offset = args.row_offset != nullptr ? row_offset.data() : nullptr;
    segment.rows = rows;
    segment.width = args.widths[s];
    segment.out_rows = args.matrix_rows;
    segment.reads_once = reads_once;
    segment.centre_columns = args.centre_columns;
    segment.output = output;
    segments.push_back(segment);
    products += static_cast<double>(args.widths[s]) * static_cast<double>(rows * args.matrix_rows);
  }
  const int threads = threads_for(products, args.threads);
  return MMFL_DISPATCH_SIMD(mix_segments, segments.data(), args.segments, threads);
}

}  // namespace mmfl
