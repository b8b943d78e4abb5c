#include <vector>

#include "common/thread_pool.h"
#include "cross_gram_sq/cross_gram_sq.h"

namespace mmfl {

Status cross_gram_sq_cpu(const CrossGramSqArgs& args) {
  if (args.count < 0 || args.batch < 0 || args.rows < 0) return Status::kBadShape;
  if (args.count > 0 && args.blocks == nullptr) return Status::kNullPointer;
  if (!is_known(args.dtype)) return Status::kBadDtype;
  std::int64_t views = 0, columns = 0;
  for (std::int64_t i = 0; i < args.count; ++i) {
    const ViewBlock& block = args.blocks[i];
    if (block.views < 0 || block.columns < 0) return Status::kBadShape;
    if (args.batch * block.views * args.rows * block.columns > 0 && block.data == nullptr)
      return Status::kNullPointer;
    views += block.views;
    columns += block.views * block.columns;
  }
  if (args.batch * views == 0) return Status::kOk;
  if (args.out == nullptr) return Status::kNullPointer;

  const double n = static_cast<double>(args.rows), d = static_cast<double>(columns);
  const int threads = threads_for(n * d * (n < d ? n : d), args.threads);
  std::vector<View> table(static_cast<std::size_t>(views));
  for (std::int64_t b = 0; b < args.batch; ++b) {
    View* next = table.data();
    for (std::int64_t i = 0; i < args.count; ++i) {
      const ViewBlock& block = args.blocks[i];
      for (std::int64_t v = 0; v < block.views; ++v) {
        const std::int64_t offset = (b * block.batch_stride + v * block.view_stride) * size_of(args.dtype);
        *next++ = {static_cast<const char*>(block.data) + offset, block.row_stride, block.column_stride,
                   block.columns};
      }
    }
    const CrossGramSqViews one{table.data(),
                               views,
                               args.rows,
                               args.dtype,
                               args.mean_columns,
                               args.normalise_rows,
                               args.out + b * views * views,
                               threads};
    const Status status = args.dtype == DType::kFloat64 ? MMFL_DISPATCH_SIMD(cross_gram_sq_in_double, one)
                                                        : MMFL_DISPATCH_SIMD(cross_gram_sq_in_float, one);
    if (status != Status::kOk) return status;
  }
  return Status::kOk;
}

}  // namespace mmfl
