// Exponentials of whole vectors. Included only by *_cpu_simd.cpp, see common/simd.h.
#pragma once

#include <math.h>

#include "common/simd.h"

namespace mmfl {
namespace MMFL_SIMD {

// e^x to 1 unit in the last place for x <= 88; 0 below -87.3, where the result would be subnormal.
static inline Floats exponential(Floats x) {
  // Unsigned, because an x above 88 overflows.
  typedef std::uint32_t Bits __attribute__((vector_size(MMFL_SIMD_BYTES)));
  const auto vanishes = x < -87.3f;
  const Floats bounded = vanishes ? Floats{} - 87.3f : x;
  // Adding 1.5 * 2^23 leaves the nearest integer to x / ln 2 in the low bits.
  const Floats shifted = bounded * 1.44269504f + 12582912.0f;
  const Floats whole = shifted - 12582912.0f;
  // ln 2 in two parts, the first short enough for its product to be exact.
  const Floats r = (bounded - whole * 0.693359375f) + whole * 0.00021219444170128554f;
  // (e^r - 1 - r) / r^2 on |r| <= ln(2) / 2, Chebyshev fit, relative error of e^r 1e-8.
  Floats tail = r * 0.0013933733571320772f + 0.008363235741853714f;
  tail = tail * r + 0.041666463017463684f;
  tail = tail * r + 0.16666576266288757f;
  tail = tail * r + 0.5f;
  const Floats mantissa = (tail * r * r + r) + 1.0f;
  Bits bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits << 23) + 0x3f800000u;
  Floats scale;
  std::memcpy(&scale, &bits, sizeof scale);
  return vanishes ? Floats{} : mantissa * scale;
}

static inline Doubles exponential(Doubles x) {
  for (int i = 0; i < kDoubleLanes; ++i) x[i] = exp(x[i]);
  return x;
}

}  // namespace MMFL_SIMD
}  // namespace mmfl
