#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/simd_level.h"
#include "common/status.h"

namespace mmfl {

// `views` matrices X [n, columns] side by side in memory; strides count elements.
struct ViewBlock {
  const void* data;
  std::int64_t batch_stride;
  std::int64_t views;
  std::int64_t view_stride;
  std::int64_t row_stride;
  std::int64_t column_stride;
  std::int64_t columns;
};

// out_ij = ||X_i^T X_j||_F^2 for all pairs of K matrices with n common rows, B times.
struct CrossGramSqArgs {
  const ViewBlock* blocks;  // [count]; their views add up to K
  std::int64_t count;
  std::int64_t batch;   // B
  std::int64_t rows;    // n
  DType dtype;          // of all views
  bool mean_columns;    // subtract from every column its mean (after normalise_rows)
  bool normalise_rows;  // scale every row to unit length; one no longer than 1e-12 becomes 0
  double* out;          // [B, K, K]
  int threads;
  bool tf32;  // a GPU may round the factors of its products to tf32
};

// Working memory: 32 MiB, or one 64 x 64 tile per view if that is more; K^2 doubles are not counted.
Status cross_gram_sq_cpu(const CrossGramSqArgs& args);

// One matrix X.
struct View {
  const void* data;
  std::int64_t row_stride;
  std::int64_t column_stride;
  std::int64_t columns;
};

// One batch entry with the blocks as views; what the SIMD levels implement.
struct CrossGramSqViews {
  const View* views;   // [count]
  std::int64_t count;  // K
  std::int64_t rows;
  DType dtype;
  bool mean_columns;
  bool normalise_rows;
  double* out;  // [K, K]
  int threads;
};

MMFL_DECLARE_SIMD(Status cross_gram_sq_in_float(const CrossGramSqViews& args))
MMFL_DECLARE_SIMD(Status cross_gram_sq_in_double(const CrossGramSqViews& args))

}  // namespace mmfl
