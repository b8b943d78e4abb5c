// Small matrix products on packed operands. Included only by *_cpu_simd.cpp, see common/simd.h.
#pragma once

#include <cstdint>

#include "common/simd.h"

namespace mmfl {
namespace MMFL_SIMD {

// Rows of a register tile; with two vectors of columns it fills the 32 registers of AVX-512 or the 16 of
// AVX2.
constexpr int kTileRows = MMFL_SIMD_BYTES == 64 ? 8 : 4;
// Products added in one accumulator before they go to memory: bounds the rounding error of long sums.
constexpr std::int64_t kMultiplyDepth = 256;

// Element (i, k) of the left operand lies at data + i * row + k * depth.
template <typename T>
struct Left {
  const T* data;
  std::int64_t row;
  std::int64_t depth;
};

// Columns of a register tile.
template <typename T>
constexpr std::int64_t kTileColumns = 2 * Simd<T>::kLanes;

// Element (k, j) of the right operand lies at data + k * depth + j; with panels of kTileColumns columns one
// behind the other, at data + j / kTileColumns * panel + k * depth + j % kTileColumns.
template <typename T>
struct Right {
  const T* data;
  std::int64_t depth;
  std::int64_t panel = kTileColumns<T>;
};

// Element (i, j) of the product lies at data + i * row + j.
template <typename T>
struct Product {
  T* data;
  std::int64_t row;
};

template <int kRows, int kVectors, typename T>
static inline void multiply_tile(std::int64_t depth, Left<T> a, Right<T> b, Product<T> c, bool add) {
  using Vector = typename Simd<T>::Vector;
  constexpr int kLanes = Simd<T>::kLanes;
  Vector sums[kRows][kVectors] = {};
  for (std::int64_t k = 0; k < depth; ++k) {
    const T* right = b.data + k * b.depth;
    const T* left = a.data + k * a.depth;
    Vector columns[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) columns[v] = load(right + v * kLanes);
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      const T scalar = left[i * a.row];
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sums[i][v] += scalar * columns[v];
    }
  }
  for (int i = 0; i < kRows; ++i) {
    for (int v = 0; v < kVectors; ++v) {
      T* to = c.data + i * c.row + v * kLanes;
      store(to, add ? load(to) + sums[i][v] : sums[i][v]);
    }
  }
}

template <int kRows, int kVectors, typename T>
static inline void multiply_rows(std::int64_t rows, std::int64_t depth, Left<T> a, Right<T> b, Product<T> c,
                                 bool add) {
  for (; rows >= kRows; rows -= kRows) {
    multiply_tile<kRows, kVectors>(depth, a, b, c, add);
    a.data += kRows * a.row;
    c.data += kRows * c.row;
  }
  if constexpr (kRows > 1) multiply_rows<kRows / 2, kVectors>(rows, depth, a, b, c, add);
}

// C = A B, or C += A B when `add`. `columns` is a multiple of the lanes of T, `depth` is not 0.
template <typename T>
static void multiply(std::int64_t rows, std::int64_t columns, std::int64_t depth, Left<T> a, Right<T> b,
                     Product<T> c, bool add) {
  for (std::int64_t k = 0; k < depth; k += kMultiplyDepth) {
    const std::int64_t step = depth - k < kMultiplyDepth ? depth - k : kMultiplyDepth;
    const Left<T> left{a.data + k * a.depth, a.row, a.depth};
    const T* right = b.data + k * b.depth;
    std::int64_t j = 0;
    for (; j + kTileColumns<T> <= columns; j += kTileColumns<T>, right += b.panel)
      multiply_rows<kTileRows, 2>(rows, step, left, {right, b.depth}, {c.data + j, c.row}, add || k > 0);
    if (j < columns)
      multiply_rows<kTileRows, 1>(rows, step, left, {right, b.depth}, {c.data + j, c.row}, add || k > 0);
  }
}

}  // namespace MMFL_SIMD
}  // namespace mmfl
