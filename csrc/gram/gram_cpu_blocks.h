// How rows and columns are cut. Included only by gram_cpu_simd.cpp, see common/simd.h.
#pragma once

#include "common/simd.h"
#include "gram/gram.h"

namespace mmfl {
namespace MMFL_SIMD {

static inline std::int64_t smaller(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
static inline std::int64_t larger(std::int64_t a, std::int64_t b) { return a > b ? a : b; }

// Packed rows lie in fours: a vector of each, then the next of each.
constexpr int kQuad = 4;
// Quads on either side whose sums, 16 KiB at most, stay in the first-level cache along the columns of a tile.
constexpr std::int64_t kGroup = 4;

// So few rows are packed and multiplied block by block, inside the first-level cache.
inline bool one_group(std::int64_t rows) { return rows <= kGroup * kQuad; }

// Of a row in a block: a few rows of it and their sums fit a first-level cache.
constexpr std::int64_t kBlockBytes = 1024;
template <typename T>
constexpr std::int64_t kBlock = kBlockBytes / static_cast<std::int64_t>(sizeof(T));

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

}  // namespace MMFL_SIMD
}  // namespace mmfl
