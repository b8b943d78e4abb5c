#include <vector>

#include "common/row_table.h"
#include "common/thread_pool.h"
#include "gram/gram.h"

namespace mmfl {

Status gram_cpu(const GramArgs& args) {
  RowTable table;
  Status status = make_row_table(args.blocks, args.grid_rows, args.segments, args.widths, table);
  if (status != Status::kOk) return status;
  RowTable origin;
  if (args.origin != nullptr) {
    status = make_row_table(args.origin, 1, args.segments, args.widths, origin);
    if (status != Status::kOk) return status;
    if (origin.rows != 1 || args.mean_origin) return Status::kBadShape;
  }
  if (table.rows == 0) return Status::kOk;
  if (args.gram == nullptr || args.row_mean == nullptr) return Status::kNullPointer;

  std::vector<std::int64_t> starts(1, 0);
  for (std::int64_t s = 0; s < args.segments; ++s) starts.push_back(starts.back() + args.widths[s]);
  bool any_double = false;
  for (const Span& span : table.spans) any_double = any_double || span.dtype == DType::kFloat64;

  GramRows rows;
  rows.spans = table.spans.data();
  rows.starts = starts.data();
  rows.origin = args.origin != nullptr ? origin.spans.data() : nullptr;
  rows.rows = table.rows;
  rows.segments = table.segments;
  rows.mean_origin = args.mean_origin;
  rows.centre_rows = args.centre_rows;
  rows.gram = args.gram;
  rows.row_mean = args.row_mean;
  const double products = 0.5 * static_cast<double>(table.rows) * static_cast<double>(table.rows + 1);
  rows.threads = threads_for(products * static_cast<double>(starts.back()), args.threads);
  return any_double ? MMFL_DISPATCH_SIMD(gram_in_double, rows) : MMFL_DISPATCH_SIMD(gram_in_float, rows);
}

}  // namespace mmfl
