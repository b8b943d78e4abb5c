// The rows in one block of columns, read where they lie. Included only by gram_cpu_simd.cpp, see
// common/simd.h.
#pragma once

#include "common/simd.h"
#include "common/simd_pack.h"
#include "common/simd_scratch.h"
#include "gram/gram.h"

namespace mmfl {
namespace MMFL_SIMD {

static inline std::int64_t smaller(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
static inline std::int64_t larger(std::int64_t a, std::int64_t b) { return a > b ? a : b; }

// Columns of a block: a few rows of it and their sums fit a first-level cache.
template <typename T>
constexpr std::int64_t kBlock = 1024 / static_cast<std::int64_t>(sizeof(T));

// `count` columns from `first`, read as whole vectors with zeros behind.
struct Block {
  std::int64_t first;
  std::int64_t count;
  std::int64_t vectors;
  std::int64_t segment;  // that holds `first`
  bool in_segment;       // all of it
};

inline std::int64_t segment_of(const GramRows& args, std::int64_t column) {
  std::int64_t low = 0, high = args.segments;
  while (high - low > 1) {
    const std::int64_t middle = (low + high) / 2;
    if (args.starts[middle] <= column) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

template <typename T>
Block block_at(const GramRows& args, std::int64_t first) {
  Block block;
  block.first = first;
  block.count = smaller(kBlock<T>, args.starts[args.segments] - first);
  block.vectors = (block.count + Simd<T>::kLanes - 1) / Simd<T>::kLanes;
  block.segment = segment_of(args, first);
  block.in_segment = first + block.count <= args.starts[block.segment + 1];
  return block;
}

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
  void locate(const Block& block) {
    const bool goes_on = block.first == end_ && block.segment == segment_;
    if (in_place_ && goes_on && block.in_segment && block.count == kBlock<T>) {
      for (std::int64_t r = 0; r < round_up(count_, kSummed); ++r) at_[r] += kBlock<T>;
      pivot_ += kBlock<T>;
    } else {
      read(block);
    }
    end_ = block.first + block.count;
    segment_ = block.segment;
    add_up(block.vectors);
    if (is_finite(sum_, block.vectors)) return;
    for (std::int64_t r = 0; r < count_; ++r)
      if (!bad_[r] && !is_finite(at_[r], block.vectors)) bad_[r] = 1;
    read(block);
    add_up(block.vectors);
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

  // sum = the rows' differences from the pivot. Eight equal rows add up to eight of them without rounding.
  void add_up(std::int64_t vectors) {
    using Vector = typename Simd<T>::Vector;
    for (std::int64_t r = 0; r < count_; r += kSummed) {
      const T *a = at_[r], *b = at_[r + 1], *c = at_[r + 2], *d = at_[r + 3];
      const T *e = at_[r + 4], *f = at_[r + 5], *g = at_[r + 6], *h = at_[r + 7];
      for (std::int64_t p = 0; p < vectors * Simd<T>::kLanes; p += Simd<T>::kLanes) {
        const Vector eight = ((load(a + p) + load(b + p)) + (load(c + p) + load(d + p))) +
                             ((load(e + p) + load(f + p)) + (load(g + p) + load(h + p)));
        const Vector before = r == 0 ? Vector{} : load(sum_ + p);
        store(sum_ + p, before + (eight - load(pivot_ + p) * T(kSummed)));
      }
    }
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
