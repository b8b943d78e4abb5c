// The rows in one block of columns, read where they lie. Included only by gram_cpu_simd.cpp, see
// common/simd.h.
#pragma once

#include "common/simd.h"
#include "common/simd_pack.h"
#include "common/simd_scratch.h"
#include "gram/gram_cpu_blocks.h"
#include "gram/gram_cpu_prefetch.h"

namespace mmfl {
namespace MMFL_SIMD {

// One row's columns of a block: in place if they can be read as whole vectors of T, else copied to `copy`.
template <typename T>
const T* read_row(const GramRows& args, const Span* spans, const Block& block, T* copy) {
  constexpr DType kStored = sizeof(T) == sizeof(double) ? DType::kFloat64 : DType::kFloat32;
  const Span& span = spans[block.segment];
  if (block.in_segment && block.count == kBlock<T> && span.stride == 1 && span.dtype == kStored)
    return static_cast<const T*>(span.data) + (block.first - args.starts[block.segment]);
  const std::int64_t end = block.first + block.count;
  std::int64_t s = block.segment;
  for (std::int64_t at = block.first; at < end; ++s) {
    const std::int64_t stop = smaller(end, args.starts[s + 1]);
    if (stop > at) pack(spans[s], at - args.starts[s], stop - at, copy + (at - block.first));
    at = larger(at, stop);
  }
  for (std::int64_t p = block.count; p < block.vectors * Simd<T>::kLanes; ++p) copy[p] = 0;
  return copy;
}

template <typename T>
bool is_finite(const T* row, std::int64_t vectors) {
  using Vector = typename Simd<T>::Vector;
  Vector probes = {};
  // Zero for every finite x, NaN for the others; a sum could overflow.
  for (std::int64_t v = 0; v < vectors; ++v) probes += load(row + v * Simd<T>::kLanes) * T(0);
  return sum(probes) == 0;
}

// Some rows in one block at a time. A row with a non-finite element is left out from then on: it reads as
// the first of the others, the pivot, so that it spoils none of them.
template <typename T>
class BlockRows {
 public:
  // Rows added up at a time: as many as there are registers for their addresses.
  static constexpr std::int64_t kSummed = 8;

  static std::int64_t bytes(std::int64_t count) {
    return count * (kBlock<T> * static_cast<std::int64_t>(sizeof(T)) + 1) +
           round_up(count, kSummed) * static_cast<std::int64_t>(sizeof(T*)) +
           2 * kBlock<T> * static_cast<std::int64_t>(sizeof(T));
  }

  BlockRows(const GramRows& args, std::int64_t first, std::int64_t count, Scratch& scratch)
      : args_(args),
        spans_(args.spans + first * args.segments),
        count_(count),
        at_(scratch.take<const T*>(round_up(count, kSummed))),
        copies_(scratch.take<T>(count * kBlock<T>)),
        zeros_(scratch.take<T>(kBlock<T>)),
        sum_(scratch.take<T>(kBlock<T>)),
        bad_(scratch.take<unsigned char>(count)) {
    for (std::int64_t p = 0; p < kBlock<T>; ++p) zeros_[p] = 0;
    for (std::int64_t r = 0; r < count_; ++r) bad_[r] = 0;
  }

  // Finds the rows' columns; afterwards all of them are finite.
  void locate(const Block& block, Prefetch& prefetch) {
    const bool goes_on = block.first == end_ && block.segment == segment_;
    if (in_place_ && goes_on && block.in_segment && block.count == kBlock<T>) {
      for (std::int64_t r = 0; r < round_up(count_, kSummed); ++r) at_[r] += kBlock<T>;
      pivot_ += kBlock<T>;
    } else {
      read(block);
    }
    end_ = block.first + block.count;
    segment_ = block.segment;
    if (add_up(block.vectors, prefetch)) return;
    for (std::int64_t r = 0; r < count_; ++r)
      if (!bad_[r] && !is_finite(at_[r], block.vectors)) bad_[r] = 1;
    read(block);
    add_up(block.vectors, prefetch);
  }

  // The centroid of the rows that are not left out. Found from differences, so that the centroid of equal
  // rows is that row to the last bit.
  void centroid(std::int64_t vectors, T* to) const {
    const T scale = finite_ > 0 ? T(1) / static_cast<T>(finite_) : T(0);
    for (std::int64_t p = 0; p < vectors * Simd<T>::kLanes; ++p) to[p] = pivot_[p] + sum_[p] * scale;
  }

  void leave_out_all() {
    for (std::int64_t r = 0; r < count_; ++r) bad_[r] = 1;
    find_pivot();
  }

  bool bad(std::int64_t r) const { return bad_[r] != 0; }
  // The rows, then the pivot up to the next multiple of kSummed.
  const T* const* at() const { return at_; }
  T* copy(std::int64_t r) { return copies_ + r * kBlock<T>; }

 private:
  void read(const Block& block) {
    in_place_ = true;
    for (std::int64_t r = 0; r < count_; ++r) {
      if (bad_[r]) continue;
      at_[r] = read_row(args_, spans_ + r * args_.segments, block, copies_ + r * kBlock<T>);
      in_place_ = in_place_ && at_[r] != copies_ + r * kBlock<T>;
    }
    find_pivot();
  }

  void find_pivot() {
    pivot_ = zeros_;
    finite_ = 0;
    for (std::int64_t r = count_ - 1; r >= 0; --r) {
      if (bad_[r]) continue;
      pivot_ = at_[r];
      ++finite_;
    }
    for (std::int64_t r = 0; r < round_up(count_, kSummed); ++r)
      if (r >= count_ || bad_[r]) at_[r] = pivot_;
    in_place_ = in_place_ && finite_ > 0;
  }

  // sum = the rows' differences from the pivot; tells whether all of them are finite. Eight equal rows add up
  // to eight of them without rounding.
  bool add_up(std::int64_t vectors, Prefetch& prefetch) {
    typename Simd<T>::Vector probes = {};
    std::int64_t r = 0;
    for (; r + kSummed < count_; r += 2 * kSummed) probes = add_rows<2>(r, vectors, prefetch);
    if (r < count_) probes = add_rows<1>(r, vectors, prefetch);
    return sum(probes) == 0;
  }

  // Adds kSummed rows from `first`, or twice as many. The result is zero, or NaN if the sums are not finite.
  template <int kTimes>
  typename Simd<T>::Vector add_rows(std::int64_t first, std::int64_t vectors, Prefetch& prefetch) {
    using Vector = typename Simd<T>::Vector;
    LinesAhead ahead = prefetch.lines;
    const T* rows[kTimes * kSummed];
    for (int i = 0; i < kTimes * kSummed; ++i) rows[i] = at_[first + i];
    const T* const pivot = pivot_;
    T* const sums = sum_;
    Vector probes = {};
    for (std::int64_t p = 0; p < vectors * Simd<T>::kLanes; p += Simd<T>::kLanes) {
      ahead.ask<4>();
      const Vector pivots = load(pivot + p) * T(kSummed);
      Vector total = first == 0 ? Vector{} : load(sums + p);
      for (int i = 0; i < kTimes * kSummed; i += kSummed) {
        Vector pairs[4];
        for (int j = 0; j < 4; ++j) pairs[j] = load(rows[i + 2 * j] + p) + load(rows[i + 2 * j + 1] + p);
        total += ((pairs[0] + pairs[1]) + (pairs[2] + pairs[3])) - pivots;
      }
      store(sums + p, total);
      // Zero for every finite x, NaN for the others; a sum could overflow.
      probes += total * T(0);
    }
    prefetch.lines = ahead;
    return probes;
  }

  const GramRows& args_;
  const Span* spans_;
  const std::int64_t count_;
  const T** at_;        // [count, to whole kSummed]
  T* copies_;           // [count, kBlock] of rows that cannot be read in place
  T* zeros_;            // [kBlock] the pivot when no row is finite
  T* sum_;              // [kBlock]
  unsigned char* bad_;  // [count]
  const T* pivot_ = nullptr;
  std::int64_t finite_ = 0;
  bool in_place_ = false;  // all rows that are not left out
  std::int64_t end_ = 0;   // column behind the block
  std::int64_t segment_ = 0;
};

}  // namespace MMFL_SIMD
}  // namespace mmfl
