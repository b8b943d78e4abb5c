// Included only by gram_cpu_simd.cpp, see common/simd.h.
#pragma once

#include "common/simd.h"
#include "gram/gram_cpu_rows.h"

namespace mmfl {
namespace MMFL_SIMD {

// Asks for rows of the next tile in small steps while this one is multiplied, so that reading and arithmetic
// overlap. Rows are read in short runs, which the processor's own prefetching does not follow.
class Prefetch {
 public:
  // Rows [first, first + rows), `count` columns from `column` as far as they lie in one segment, to be spread
  // over `steps`.
  Prefetch(const GramRows& args, std::int64_t first, std::int64_t rows, std::int64_t column,
           std::int64_t count, std::int64_t steps)
      : segments_(args.segments) {
    if (count == 0) return;
    const std::int64_t segment = segment_of(args, column);
    next_ = args.spans + first * segments_ + segment;
    rows_ = rows;
    offset_ = column - args.starts[segment];
    count_ = smaller(count, args.starts[segment + 1] - column);
    // A power of two, so that all steps of a row are alike and no branch is mispredicted.
    while (bytes_per_step_ * steps < rows * count_ * size_of(next_->dtype)) bytes_per_step_ *= 2;
  }

  // Inlined by force: GCC takes a function that only prefetches for one without effect and drops the call.
  __attribute__((always_inline)) inline void step() {
    if (at_ >= end_ && !next_row()) return;
    const char* stop = at_ + bytes_per_step_;
    for (; at_ < stop; at_ += kLine) __builtin_prefetch(at_, 0, 2);
  }

 private:
  static constexpr std::int64_t kLine = 64;

  bool next_row() {
    while (rows_ > 0) {
      const Span& span = *next_;
      next_ += segments_;
      --rows_;
      if (span.stride != 1) continue;
      at_ = static_cast<const char*>(span.data) + offset_ * size_of(span.dtype);
      end_ = at_ + count_ * size_of(span.dtype);
      return true;
    }
    return false;
  }

  const std::int64_t segments_;
  const Span* next_ = nullptr;
  std::int64_t rows_ = 0;
  std::int64_t offset_ = 0;
  std::int64_t count_ = 0;
  std::int64_t bytes_per_step_ = kLine;
  const char* at_ = nullptr;
  const char* end_ = nullptr;
};

}  // namespace MMFL_SIMD
}  // namespace mmfl
