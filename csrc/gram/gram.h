#pragma once

#include <cstdint>

#include "common/row_block.h"
#include "common/simd_level.h"
#include "common/span.h"
#include "common/status.h"

namespace mmfl {

// G = R R^T for K rows of P elements, where R holds the rows less an origin.
struct GramArgs {
  const RowBlock* blocks;      // [grid_rows, segments]; their rows add up to K
  const std::int64_t* widths;  // [segments] elements of one row, they add up to P
  const RowBlock* origin;      // [segments] blocks of one row, or null
  std::int64_t grid_rows;
  std::int64_t segments;
  bool mean_origin;  // subtract the centroid of the finite rows
  bool centre_rows;  // then subtract from every row the mean of its own elements
  bool tf32;         // a GPU may round the factors of its products to tf32
  double* gram;      // [K, K]
  double* row_mean;  // [K] what centre_rows subtracted, 0 without it
  int threads;
};

// A row with a non-finite element is left out of the centroid and gives NaN in its own row and column.
Status gram_cpu(const GramArgs& args);

// The same with the rows as spans; what the SIMD levels implement.
struct GramRows {
  const Span* spans;           // [K, segments]
  const std::int64_t* starts;  // [segments + 1] first column of every segment, then P
  const Span* origin;          // [segments], or null
  std::int64_t rows;
  std::int64_t segments;
  bool mean_origin;
  bool centre_rows;
  double* gram;
  double* row_mean;
  int threads;
};

MMFL_DECLARE_SIMD(Status gram_in_float(const GramRows& args))
MMFL_DECLARE_SIMD(Status gram_in_double(const GramRows& args))

}  // namespace mmfl
