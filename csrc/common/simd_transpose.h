// Transposes of square blocks of vectors. Included only by *_cpu_simd.cpp, see common/simd.h.
#pragma once

#include <cstdint>

#include "common/simd_lane_sums.h"

namespace mmfl {
namespace MMFL_SIMD {

// Swaps the off-diagonal quarters of blocks of 2 * kHalf rows and lanes: `upper` and `lower` are rows kHalf
// apart.
template <typename T, int kHalf, int... I>
static inline void swap_quarters(typename Simd<T>::Vector& upper, typename Simd<T>::Vector& lower,
                                 Indices<I...>) {
  constexpr int kLanes = Simd<T>::kLanes;
  const auto top = shuffle<T, ((I & kHalf) == 0 ? I : kLanes + I - kHalf)...>(upper, lower);
  lower = shuffle<T, ((I & kHalf) == 0 ? I + kHalf : kLanes + I)...>(upper, lower);
  upper = top;
}

// Lane j of rows[i] changes places with lane i of rows[j], for blocks of 2 * kHalf lanes and smaller.
template <typename T, int kHalf = Simd<T>::kLanes / 2>
static inline void transpose(typename Simd<T>::Vector (&rows)[Simd<T>::kLanes]) {
  constexpr int kLanes = Simd<T>::kLanes;
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i)
    if ((i & kHalf) == 0)
      swap_quarters<T, kHalf>(rows[i], rows[i + kHalf], typename IndicesUpTo<kLanes>::Type{});
  if constexpr (kHalf > 1) transpose<T, kHalf / 2>(rows);
}

// Writes the transpose of rows [rows, columns] whose starts lie `from_row` apart; the result's rows lie
// `to_row` apart. Both counts are multiples of the lanes of T.
template <typename T>
static void transpose(std::int64_t rows, std::int64_t columns, const T* from, std::int64_t from_row, T* to,
                      std::int64_t to_row) {
  constexpr std::int64_t kLanes = Simd<T>::kLanes;
  typename Simd<T>::Vector block[kLanes];
  for (std::int64_t r = 0; r < rows; r += kLanes) {
    for (std::int64_t c = 0; c < columns; c += kLanes) {
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) block[i] = load(from + (r + i) * from_row + c);
      transpose<T>(block);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) store(to + (c + i) * to_row + r, block[i]);
    }
  }
}

}  // namespace MMFL_SIMD
}  // namespace mmfl
