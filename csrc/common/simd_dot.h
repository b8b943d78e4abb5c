// Inner products of rows. Included only by *_cpu_simd.cpp, see common/simd.h.
#pragma once

#include <cstdint>

#include "common/simd_lane_sums.h"

namespace mmfl {
namespace MMFL_SIMD {

// The first `count` lanes from memory, zeros in the others.
template <typename T>
static inline typename Simd<T>::Vector load_first(const T* from, std::int64_t count) {
  typename Simd<T>::Vector value{};
  std::memcpy(&value, from, static_cast<std::size_t>(count) * sizeof(T));
  return value;
}

// Lanes of partial sums of <a, b>.
template <typename T>
static inline typename Simd<T>::Vector dot_lanes(const T* a, const T* b, std::int64_t count) {
  constexpr std::int64_t kLanes = Simd<T>::kLanes;
  typename Simd<T>::Vector even{}, odd{};
  std::int64_t i = 0;
  for (; i + 2 * kLanes <= count; i += 2 * kLanes) {
    even += load(a + i) * load(b + i);
    odd += load(a + i + kLanes) * load(b + i + kLanes);
  }
  for (; i + kLanes <= count; i += kLanes) even += load(a + i) * load(b + i);
  if (i < count) odd += load_first(a + i, count - i) * load_first(b + i, count - i);
  return even + odd;
}

template <typename T>
static inline T dot(const T* a, const T* b, std::int64_t count) {
  return sum(dot_lanes(a, b, count));
}

static inline Doubles widen(const float* from) {
  Part<float, kDoubleLanes>::Vector value;
  std::memcpy(&value, from, sizeof value);
  return __builtin_convertvector(value, Doubles);
}
static inline Doubles widen(const double* from) { return load(from); }

// <a, b> in double, of rows padded with zeros to whole vectors of doubles.
template <typename T>
static double wide_dot(const double* a, const T* b, std::int64_t count) {
  Doubles sums{};
  for (std::int64_t i = 0; i < count; i += kDoubleLanes) sums += load(a + i) * widen(b + i);
  return sum(sums);
}

// Squared lengths of `count` rows, to squares [count]; there is room for whole vectors.
template <typename T>
static void squared_lengths(std::int64_t count, const T* rows, std::int64_t pitch, std::int64_t columns,
                            T* squares) {
  constexpr std::int64_t kLanes = Simd<T>::kLanes;
  for (std::int64_t first = 0; first < count; first += kLanes) {
    typename Simd<T>::Vector lanes[kLanes] = {};
    for (std::int64_t i = 0; i < kLanes && first + i < count; ++i) {
      const T* row = rows + (first + i) * pitch;
      lanes[i] = dot_lanes(row, row, columns);
    }
    store(squares + first, lane_sums<T>(lanes));
  }
}

// Sums of squares between these have lost nothing to overflow or underflow, in floats either.
template <typename T>
static inline bool in_safe_range(T squares) {
  return squares > T(1e-20) && squares < T(1e30);
}

// The sum of squares of a row that leaves that range.
template <typename T>
static double wide_square(const T* row, std::int64_t count) {
  double chains[8] = {};
  for (std::int64_t i = 0; i < count; ++i) chains[i % 8] += static_cast<double>(row[i]) * row[i];
  for (int i = 1; i < 8; ++i) chains[0] += chains[i];
  return chains[0];
}

}  // namespace MMFL_SIMD
}  // namespace mmfl
