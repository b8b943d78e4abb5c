// Vector types for one SIMD level. Included only by *_cpu_simd.cpp, which CMake compiles once per level
// with MMFL_SIMD (the namespace) and MMFL_SIMD_BYTES set. Such files use no standard-library templates:
// their weak symbols would be shared between levels and could carry instructions the processor lacks.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/dtype.h"

namespace mmfl {
namespace MMFL_SIMD {

constexpr int kFloatLanes = MMFL_SIMD_BYTES / 4;
constexpr int kDoubleLanes = MMFL_SIMD_BYTES / 8;

typedef float Floats __attribute__((vector_size(MMFL_SIMD_BYTES)));
typedef double Doubles __attribute__((vector_size(MMFL_SIMD_BYTES)));

// The vector of T at this level.
template <typename T>
struct Simd;
template <>
struct Simd<float> {
  using Vector = Floats;
  using Index = std::int32_t;
  static constexpr int kLanes = kFloatLanes;
};
template <>
struct Simd<double> {
  using Vector = Doubles;
  using Index = std::int64_t;
  static constexpr int kLanes = kDoubleLanes;
};

static inline Floats load(const float* from) {
  Floats value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

static inline Doubles load(const double* from) {
  Doubles value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

static inline void store(float* to, Floats value) { std::memcpy(to, &value, sizeof value); }
static inline void store(double* to, Doubles value) { std::memcpy(to, &value, sizeof value); }

template <typename T, int kCount>
struct Part {
  typedef T Vector __attribute__((vector_size(kCount * sizeof(T))));
};

template <typename T, int kCount>
static inline T sum_of(typename Part<T, kCount>::Vector value) {
  if constexpr (kCount == 2) {
    return value[0] + value[1];
  } else {
    typename Part<T, kCount / 2>::Vector half[2];
    std::memcpy(half, &value, sizeof value);
    return sum_of<T, kCount / 2>(half[0] + half[1]);
  }
}

// Lanes are added pairwise in a fixed order, the upper half to the lower.
static inline double sum(Doubles value) { return sum_of<double, kDoubleLanes>(value); }
static inline float sum(Floats value) { return sum_of<float, kFloatLanes>(value); }

static inline float float_from_bfloat16(std::uint16_t bits) {
  const std::uint32_t wide = static_cast<std::uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

// IEEE half to single with integer and float arithmetic alone, so that loops over it vectorise.
static inline float float_from_float16(std::uint16_t bits) {
  const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000u) << 16;
  const std::uint32_t magnitude = static_cast<std::uint32_t>(bits & 0x7fffu) << 13;
  float scaled;
  std::memcpy(&scaled, &magnitude, sizeof scaled);
  // 2^112 moves the exponent bias from 15 to 127 and makes subnormals normal; it is exact.
  scaled *= 5.192296858534828e33f;
  std::uint32_t result;
  std::memcpy(&result, &scaled, sizeof result);
  if (magnitude >= 0x0f800000u) result |= 0x7f800000u;
  result |= sign;
  float value;
  std::memcpy(&value, &result, sizeof value);
  return value;
}

// Round to nearest even; NaN stays NaN.
static inline std::uint16_t bfloat16_from_float(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>((bits >> 16) | 0x40u);
  return static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// Round to nearest even, subnormals and overflow to infinity included; NaN stays NaN.
static inline std::uint16_t float16_from_float(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const std::uint32_t sign = (bits >> 16) & 0x8000u;
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<std::uint16_t>(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return static_cast<std::uint16_t>(sign | 0x7c00u);
  if (magnitude < 0x38800000u) {
    // Adding 0.5 aligns the mantissa so that the hardware rounds at half's subnormal step 2^-24.
    float shifted;
    std::memcpy(&shifted, &magnitude, sizeof shifted);
    shifted += 0.5f;
    std::uint32_t aligned;
    std::memcpy(&aligned, &shifted, sizeof aligned);
    return static_cast<std::uint16_t>(sign | (aligned - 0x3f000000u));
  }
  const std::uint32_t odd = (magnitude >> 13) & 1u;
  return static_cast<std::uint16_t>(sign | ((magnitude - 0x38000000u + 0xfffu + odd) >> 13));
}

}  // namespace MMFL_SIMD
}  // namespace mmfl
