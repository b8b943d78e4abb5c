// Sums of products in the registers of a warp, by its matrix instructions. A panel is 8 rows; lane l of a
// warp holds columns of row l / 4 of every panel.
#pragma once

#include "common/device.cuh"

namespace mmfl {
namespace device {

MMFL_DEVICE float rounded_to_tf32(float value) {
  return float_from_bits((bits_of(value) + 0x1000u) & 0xffffe000u);
}

// The product of 16 rows with 8 others, all split in two tf32 numbers; with kTf32 that of the high parts
// alone. The matrix unit rounds towards zero, so it adds three products and no more.
template <bool kTf32>
MMFL_DEVICE void add_split_product(float (&sums)[4], const std::uint32_t (&high)[4],
                                   const std::uint32_t (&low)[4], const std::uint32_t (&other_high)[2],
                                   const std::uint32_t (&other_low)[2]) {
  float product[4] = {};
  if constexpr (!kTf32) {
    multiply_add_tf32(product, low, other_high);
    multiply_add_tf32(product, high, other_low);
  }
  multiply_add_tf32(product, high, other_high);
#pragma unroll
  for (int c = 0; c < 4; ++c) sums[c] += product[c];
}

// Sums of products of kLeft panels with kRight; of a panel set with itself when kDiagonal, and then only
// those on and above the diagonal of the 16 x 8 tiles.
template <typename T, int kLeft, int kRight, bool kDiagonal, bool kTf32 = false>
struct Products;

// `add` takes the first kPerStep columns of its operands, and of the right one the first `live` panels.
//
// In float a factor is split in two tf32 numbers, x = high + low + O(2^-22 x), and the product of the two low
// parts is left out; with kTf32 all but that of the high parts.
template <int kLeft, int kRight, bool kDiagonal, bool kTf32>
struct Products<float, kLeft, kRight, kDiagonal, kTf32> {
  using Value = float;
  static constexpr int kPerStep = 2;
  float sums[kLeft / 2][kRight][4];

  MMFL_DEVICE void clear() {
#pragma unroll
    for (int m = 0; m < kLeft / 2; ++m)
#pragma unroll
      for (int n = 0; n < kRight; ++n)
#pragma unroll
        for (int c = 0; c < 4; ++c) sums[m][n][c] = 0;
  }

  // A NaN must be quiet_nan: the rounding carries one of all ones over into the sign.
  static MMFL_DEVICE void split(float value, std::uint32_t& high, std::uint32_t& low) {
    high = bits_of(rounded_to_tf32(value));
    low = kTf32 ? 0 : bits_of(value - float_from_bits(high)) + 0x1000u;
  }

  template <int kPanels>
  struct Operand {
    std::uint32_t high[kPanels][2];
    std::uint32_t low[kPanels][2];
    template <int kWidth>
    MMFL_DEVICE explicit Operand(const float (&rows)[kPanels][kWidth]) {
#pragma unroll
      for (int i = 0; i < kPanels; ++i)
#pragma unroll
        for (int k = 0; k < 2; ++k) split(rows[i][k], high[i][k], low[i][k]);
    }
  };

  // Row lane / 4 of left panel `row` and column 2 (lane % 4) + c of right panel `column`.
  MMFL_DEVICE float& at(int row, int column, int c) { return sums[row / 2][column][row % 2 * 2 + c]; }

  template <int kWidth>
  MMFL_DEVICE void add(const float (&left)[kLeft][kWidth], const float (&right)[kRight][kWidth],
                       int live = kRight) {
    const Operand<kLeft> a(left);
    if constexpr (kDiagonal) {
      multiply(a, a, live);
    } else {
      multiply(a, Operand<kRight>(right), live);
    }
  }

  // A test in front of every product would keep those of different panels from running side by side.
  MMFL_DEVICE void multiply(const Operand<kLeft>& a, const Operand<kRight>& b, int live) {
    if (live >= kRight) {
      multiply_panels<true>(a, b, live);
    } else {
      multiply_panels<false>(a, b, live);
    }
  }

  template <bool kAll>
  MMFL_DEVICE void multiply_panels(const Operand<kLeft>& a, const Operand<kRight>& b, int live) {
#pragma unroll
    for (int m = 0; m < kLeft / 2; ++m) {
      const std::uint32_t high[4] = {a.high[2 * m][0], a.high[2 * m + 1][0], a.high[2 * m][1],
                                     a.high[2 * m + 1][1]};
      const std::uint32_t low[4] = {a.low[2 * m][0], a.low[2 * m + 1][0], a.low[2 * m][1],
                                    a.low[2 * m + 1][1]};
#pragma unroll
      for (int n = kDiagonal ? 2 * m : 0; n < kRight; ++n) {
        if (!kAll && n >= live) continue;
        add_split_product<kTf32>(sums[m][n], high, low, b.high[n], b.low[n]);
      }
    }
  }

  // visit(row, column, sum) of every product this lane holds.
  template <typename Visit>
  MMFL_DEVICE void each(Visit visit) const {
    const int lane = thread() % kWarp;
#pragma unroll
    for (int m = 0; m < kLeft / 2; ++m)
#pragma unroll
      for (int n = kDiagonal ? 2 * m : 0; n < kRight; ++n)
#pragma unroll
        for (int c = 0; c < 4; ++c)
          visit(16 * m + lane / 4 + c / 2 * 8, 8 * n + lane % 4 * 2 + c % 2, sums[m][n][c]);
  }
};

// IEEE products and sums.
template <int kLeft, int kRight, bool kDiagonal, bool kTf32>
struct Products<double, kLeft, kRight, kDiagonal, kTf32> {
  using Value = double;
  static constexpr int kPerStep = 1;
  double sums[kLeft][kRight][2];

  MMFL_DEVICE void clear() {
#pragma unroll
    for (int m = 0; m < kLeft; ++m)
#pragma unroll
      for (int n = 0; n < kRight; ++n) sums[m][n][0] = sums[m][n][1] = 0;
  }

  MMFL_DEVICE double& at(int row, int column, int c) { return sums[row][column][c]; }

  template <int kWidth>
  MMFL_DEVICE void add(const double (&left)[kLeft][kWidth], const double (&right)[kRight][kWidth],
                       int live = kRight) {
#pragma unroll
    for (int m = 0; m < kLeft; ++m)
#pragma unroll
      for (int n = kDiagonal ? m : 0; n < kRight; ++n)
        if (n < live) multiply_add_f64(sums[m][n], left[m][0], right[n][0]);
  }

  template <typename Visit>
  MMFL_DEVICE void each(Visit visit) const {
    const int lane = thread() % kWarp;
#pragma unroll
    for (int m = 0; m < kLeft; ++m)
#pragma unroll
      for (int n = kDiagonal ? m : 0; n < kRight; ++n)
#pragma unroll
        for (int c = 0; c < 2; ++c) visit(8 * m + lane / 4, 8 * n + lane % 4 * 2 + c, sums[m][n][c]);
  }
};

// The next columns in the place of the first.
template <int kCount, typename T, int kPanels, int kWidth>
MMFL_DEVICE void drop_columns(T (&rows)[kPanels][kWidth]) {
#pragma unroll
  for (int i = 0; i < kPanels; ++i)
#pragma unroll
    for (int c = 0; c + kCount < kWidth; ++c) rows[i][c] = rows[i][c + kCount];
}

}  // namespace device
}  // namespace mmfl
