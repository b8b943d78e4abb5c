// Products of matrices of a few dozen rows with weights that stay in cache. Included only by
// client_step_cpu_simd.cpp, see common/simd.h.
//
// No operand is transposed: where both run along the depth, lanes hold partial sums of one element and are
// added at the end; otherwise lanes hold neighbouring columns. Blocks depend on the shape alone.
#pragma once

#include <cstdint>

#include "common/simd.h"
#include "common/simd_lane_sums.h"
#include "common/simd_part.h"

namespace mmfl {
namespace MMFL_SIMD {

// Element (i, j) lies at data + i * row + j * column.
struct Matrix {
  const float* data;
  std::int64_t row;
  std::int64_t column;
};

static inline std::int64_t least(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

// Register tile of the products along the depth: kLanes sums, which fold into one vector.
constexpr int kAlongColumns = kFloatLanes == 4 ? 2 : 4;
constexpr int kAlongRows = kFloatLanes / kAlongColumns;
// Right rows that stay in the first-level cache while all left rows pass.
constexpr std::int64_t kAlongBlockBytes = 24 << 10;

template <int kRows, int kColumns>
static inline void along_depth_tile(std::int64_t depth, Matrix a, Matrix b, float* c, std::int64_t c_row,
                                    bool add) {
  Floats sums[kAlongRows * kAlongColumns] = {};
  const auto step = [&](auto load_lanes, std::int64_t k) {
    Floats right[kColumns];
#pragma GCC unroll 4
    for (int j = 0; j < kColumns; ++j) right[j] = load_lanes(b.data + j * b.row + k);
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i) {
      const Floats left = load_lanes(a.data + i * a.row + k);
#pragma GCC unroll 4
      for (int j = 0; j < kColumns; ++j) sums[i * kAlongColumns + j] += left * right[j];
    }
  };
  std::int64_t k = 0;
  for (; k + kFloatLanes <= depth; k += kFloatLanes) step([](const float* from) { return load(from); }, k);
  const int rest = static_cast<int>(depth - k);
  if (rest > 0) step([rest](const float* from) { return load_part(from, rest); }, k);
  float totals[kFloatLanes];
  store(totals, lane_sums<float>(sums));
  for (int i = 0; i < kRows; ++i)
    for (int j = 0; j < kColumns; ++j) {
      const float total = totals[i * kAlongColumns + j];
      c[i * c_row + j] = add ? c[i * c_row + j] + total : total;
    }
}

// `rows` is at most kRows.
template <int kRows, int kColumns>
static inline void along_depth_rows(std::int64_t rows, std::int64_t depth, Matrix a, Matrix b, float* c,
                                    std::int64_t c_row, bool add) {
  if (rows >= kRows) {
    along_depth_tile<kRows, kColumns>(depth, a, b, c, c_row, add);
    rows -= kRows;
    a.data += kRows * a.row;
    c += kRows * c_row;
  }
  if constexpr (kRows > 1)
    if (rows > 0) along_depth_rows<kRows / 2, kColumns>(rows, depth, a, b, c, c_row, add);
}

// Longer sums are added up in pieces, which lose less and stay in cache.
constexpr std::int64_t kAlongDepth = 1024;

static void multiply_along_piece(std::int64_t rows, std::int64_t columns, std::int64_t depth, Matrix a,
                                 Matrix b, float* c, std::int64_t c_row, bool add) {
  const std::int64_t fitting = kAlongBlockBytes / 4 / (depth > 0 ? depth : 1) / kAlongColumns * kAlongColumns;
  const std::int64_t block = fitting > kAlongColumns ? fitting : kAlongColumns;
  for (std::int64_t first = 0; first < columns; first += block) {
    const std::int64_t end = least(first + block, columns);
    for (std::int64_t i = 0; i < rows; i += kAlongRows) {
      const std::int64_t count = least(kAlongRows, rows - i);
      const Matrix left{a.data + i * a.row, a.row, 1};
      std::int64_t j = first;
      for (; j + kAlongColumns <= end; j += kAlongColumns)
        along_depth_rows<kAlongRows, kAlongColumns>(count, depth, left, {b.data + j * b.row, b.row, 1},
                                                    c + i * c_row + j, c_row, add);
      for (; j < end; ++j)
        along_depth_rows<kAlongRows, 1>(count, depth, left, {b.data + j * b.row, b.row, 1}, c + i * c_row + j,
                                        c_row, add);
    }
  }
}

// C = A B^T, or C += A B^T: element (i, j) is the sum over k of a(i, k) b(j, k); a.column and b.column are 1.
static void multiply_along_depth(std::int64_t rows, std::int64_t columns, std::int64_t depth, Matrix a,
                                 Matrix b, float* c, std::int64_t c_row, bool add) {
  std::int64_t k = 0;
  do {
    multiply_along_piece(rows, columns, least(kAlongDepth, depth - k), {a.data + k, a.row, 1},
                         {b.data + k, b.row, 1}, c, c_row, add || k > 0);
    k += kAlongDepth;
  } while (k < depth);
}

// Register tile of the products across the depth.
constexpr int kAcrossRows = MMFL_SIMD_BYTES == 64 ? 8 : 4;
constexpr std::int64_t kAcrossColumns = 2 * kFloatLanes;
// Packed floats that stay in the second-level cache.
constexpr std::int64_t kResident = 1 << 16;

// Floats that packing the right operand of a product takes.
static inline std::int64_t packed_size(std::int64_t depth, std::int64_t columns) {
  return (columns + kAcrossColumns - 1) / kAcrossColumns * kAcrossColumns * depth;
}

// Panels of kAcrossColumns columns one behind the other, zeros behind the last column.
static void pack_columns(std::int64_t depth, std::int64_t columns, const float* from, std::int64_t row,
                         float* to) {
  for (std::int64_t j = 0; j < columns; j += kAcrossColumns) {
    const int count = static_cast<int>(least(kAcrossColumns, columns - j));
    const int first = count < kFloatLanes ? count : kFloatLanes;
    for (std::int64_t k = 0; k < depth; ++k, to += kAcrossColumns) {
      const float* line = from + k * row + j;
      if (count == kAcrossColumns) {
        store(to, load(line));
        store(to + kFloatLanes, load(line + kFloatLanes));
      } else {
        store(to, load_part(line, first));
        store(to + kFloatLanes,
              count > kFloatLanes ? load_part(line + kFloatLanes, count - kFloatLanes) : Floats{});
      }
    }
  }
}

// `finish(i, j, sums, count)` takes the first `count` elements from (i, j) on.
template <int kRows, typename Finish>
static inline void across_depth_tile(std::int64_t depth, Matrix a, const float* b, std::int64_t i0,
                                     std::int64_t j0, int columns, Finish finish) {
  Floats sums[kRows][2] = {};
  const float* left = a.data;
  for (std::int64_t k = 0; k < depth; ++k, left += a.column, b += kAcrossColumns) {
    const Floats right0 = load(b);
    const Floats right1 = load(b + kFloatLanes);
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      const float scalar = left[i * a.row];
      sums[i][0] += scalar * right0;
      sums[i][1] += scalar * right1;
    }
  }
  const int first = columns < kFloatLanes ? columns : kFloatLanes;
  for (int i = 0; i < kRows; ++i) {
    finish(i0 + i, j0, sums[i][0], first);
    if (columns > kFloatLanes) finish(i0 + i, j0 + kFloatLanes, sums[i][1], columns - kFloatLanes);
  }
}

template <int kRows, typename Finish>
static inline void across_depth_rows(std::int64_t i, std::int64_t rows, std::int64_t depth, Matrix a,
                                     const float* b, std::int64_t j, int columns, Finish finish) {
  for (; i + kRows <= rows; i += kRows)
    across_depth_tile<kRows>(depth, {a.data + i * a.row, a.row, a.column}, b, i, j, columns, finish);
  if constexpr (kRows > 1) across_depth_rows<kRows / 2>(i, rows, depth, a, b, j, columns, finish);
}

// Gives `finish` the elements (i, j) = sum over k of a(i, k) b(k, j), each once; b.column is 1, and `packed`
// has room for packed_size(depth, columns).
template <typename Finish>
static void multiply_across_depth(std::int64_t rows, std::int64_t columns, std::int64_t depth, Matrix a,
                                  Matrix b, float* packed, Finish finish) {
  pack_columns(depth, columns, b.data, b.row, packed);
  // Few rows of the right operand stay in cache while all rows of the result, whose lines then come in
  // order, pass; many would not.
  const bool rows_first = packed_size(depth, columns) <= kResident;
  const std::int64_t row_step = rows_first ? kAcrossRows : rows;
  for (std::int64_t i = 0; i < rows; i += row_step) {
    const std::int64_t end = least(i + row_step, rows);
    for (std::int64_t j = 0; j < columns; j += kAcrossColumns)
      across_depth_rows<kAcrossRows>(i, end, depth, a, packed + j * depth, j,
                                     static_cast<int>(least(kAcrossColumns, columns - j)), finish);
  }
}

}  // namespace MMFL_SIMD
}  // namespace mmfl
