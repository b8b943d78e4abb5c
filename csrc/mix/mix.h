#pragma once

#include <cstdint>

#include "common/row_block.h"
#include "common/simd_level.h"
#include "common/span.h"
#include "common/status.h"

namespace mmfl {

// y_r = sum_k matrix[r, k] (x_k - c - row_offset[k]): R weighted sums of K rows of P elements.
struct MixArgs {
  const RowBlock* blocks;      // [grid_rows, segments]; their rows add up to K
  const std::int64_t* widths;  // [segments] elements of one row, they add up to P
  const RowBlock* outputs;     // [segments] blocks of R rows with stride 1
  const double* matrix;        // [R, K]
  const double* row_offset;    // [K], or null for zeros
  std::int64_t grid_rows;
  std::int64_t segments;
  std::int64_t matrix_rows;
  std::int64_t matrix_columns;
  bool centre_columns;  // c is the mean of the rows that take part, else 0
  int threads;
};

// A row whose weight is exactly 0 is not read for that output; one whose weights are all 0 takes no part.
Status mix_cpu(const MixArgs& args);

// The same for one segment, with the rows that take part as spans; what the SIMD levels implement.
struct MixSegment {
  const Span* spans;         // [K]
  const double* matrix;      // [R, K]
  const double* row_offset;  // [K], or null
  std::int64_t rows;
  std::int64_t width;
  std::int64_t out_rows;
  bool reads_once;  // no row has a weight for more than one output, as in means of disjoint clusters
  bool centre_columns;
  RowBlock output;
};

MMFL_DECLARE_SIMD(Status mix_segments(const MixSegment* segments, std::int64_t count, int threads))

}  // namespace mmfl
