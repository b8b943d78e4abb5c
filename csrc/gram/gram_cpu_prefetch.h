// Included only by gram_cpu_simd.cpp, see common/simd.h.
#pragma once

#include "common/simd.h"
#include "gram/gram_cpu_blocks.h"

namespace mmfl {
namespace MMFL_SIMD {

// Where the rows of one group go on.
class NextBlock {
 public:
  static constexpr std::int64_t kRows = kGroup * kQuad;

  NextBlock(const GramRows& args, std::int64_t column) {
    const std::int64_t segment = segment_of(args, column), offset = column - args.starts[segment];
    for (std::int64_t r = 0; r < kRows; ++r) {
      const Span& span = args.spans[smaller(r, args.rows - 1) * args.segments + segment];
      rows_[r] = reinterpret_cast<std::uintptr_t>(span.data) +
                 static_cast<std::uintptr_t>(offset * span.stride * size_of(span.dtype));
    }
  }

  const std::uintptr_t* rows() const { return rows_; }

 private:
  std::uintptr_t rows_[kRows];
};

// Asks for the next block of one group a few lines at a time, inside the loops over this one: so few rows
// take about as long to multiply as to read, and lines asked for all at once would wait for each other.
class LinesAhead {
 public:
  // Of no block.
  LinesAhead() = default;
  explicit LinesAhead(const NextBlock& block) : rows_(block.rows()) {}

  // For one vector of columns, `kLines` of them with AVX-512. Once all are asked for it starts again, which
  // costs less than to ask whether it should.
  // Inlined by force: GCC takes a function that only prefetches for one without effect and drops the call.
  template <int kLines>
  __attribute__((always_inline)) inline void ask() {
    constexpr int kCount = (kLines * MMFL_SIMD_BYTES + 63) / 64;
    if (rows_ == nullptr) return;
    for (int i = 0; i < kCount; ++i, ++line_) {
      const std::uintptr_t row = rows_[line_ / kLinesOfRow % NextBlock::kRows];
      __builtin_prefetch(reinterpret_cast<const void*>(row + line_ % kLinesOfRow * kLine), 0, 3);
    }
  }

 private:
  static constexpr std::uint64_t kLine = 64;
  static constexpr std::uint64_t kLinesOfRow = kBlockBytes / kLine;

  const std::uintptr_t* rows_ = nullptr;
  std::uint64_t line_ = 0;
};

// Asks for rows of the next tile in small steps while this one is multiplied, so that reading and arithmetic
// overlap. Rows are read in short runs, which the processor's own prefetching does not follow.
class Prefetch {
 public:
  Prefetch() = default;
  explicit Prefetch(const NextBlock& block) : lines(block) {}
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

  LinesAhead lines;

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

  std::int64_t segments_ = 0;
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
