// ||X_i^T X_j||_F^2 is the sum of squares of a d_i x d_j product, or the inner product of two n x n Gram
// matrices. The cheaper form is chosen from the shape; neither product is ever whole.
#include "cross_gram_sq/cross_gram_sq_simd_columns.h"
#include "cross_gram_sq/cross_gram_sq_simd_rows.h"

namespace mmfl {
namespace MMFL_SIMD {
namespace {

template <typename T>
Status cross_gram_sq(const CrossGramSqViews& args) {
  Views<T> views(args);
  if (!views.measure()) return Status::kOutOfMemory;
  clear(args.out, args.count * args.count);
  const double n = static_cast<double>(args.rows), k = static_cast<double>(args.count);
  const double columns = static_cast<double>(views.all_columns());
  // The n x n form holds whole tiles.
  const double held = static_cast<double>(round_up(args.rows, kTile));
  const bool by_rows = n * held * columns + k * k * held * held / 2 <= n * columns * columns;
  const bool done = by_rows ? RowForm<T>(views, args.out).run() : ColumnForm<T>(views, args.out).run();
  if (!done) return Status::kOutOfMemory;
  for (std::int64_t i = 0; i < args.count; ++i)
    for (std::int64_t j = 0; j < i; ++j) args.out[i * args.count + j] = args.out[j * args.count + i];
  return Status::kOk;
}

}  // namespace

Status cross_gram_sq_in_float(const CrossGramSqViews& args) { return cross_gram_sq<float>(args); }
Status cross_gram_sq_in_double(const CrossGramSqViews& args) { return cross_gram_sq<double>(args); }

}  // namespace MMFL_SIMD
}  // namespace mmfl
