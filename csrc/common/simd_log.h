// Logarithms of whole vectors. Included only by *_cpu_simd.cpp, see common/simd.h.
#pragma once

#include <math.h>

#include "common/simd.h"

namespace mmfl {
namespace MMFL_SIMD {

// log(1 + x) to 2 units in the last place for x >= 0; NaN stays NaN.
static inline Floats log_of_one_plus(Floats x) {
  typedef std::int32_t Integers __attribute__((vector_size(MMFL_SIMD_BYTES)));
  // Unsigned, because they overflow where x is below -1.
  typedef std::uint32_t Bits __attribute__((vector_size(MMFL_SIMD_BYTES)));
  const Floats one = Floats{} + 1.0f;
  const Floats y = one + x;
  Bits bits;
  std::memcpy(&bits, &y, sizeof bits);
  // y = 2^exponent * m with m in [sqrt(1/2), sqrt(2)).
  const Integers exponent = (Integers)(bits - 0x3f3504f3u) >> 23;
  const Bits scale_bits = 0x3f800000u - ((Bits)exponent << 23);
  Floats scale;
  std::memcpy(&scale, &scale_bits, sizeof scale);
  // m - 1 with what the addition of 1 has rounded away, which for small x is all there is.
  const Floats lost = x < one ? x - (y - one) : one - (y - x);
  const Floats f = (y * scale - one) + lost * scale;
  // (log(1 + f) - f + f^2 / 2) / f^3, least-maximum fit, relative error of the logarithm 6e-9.
  Floats tail = f * -0.07644686847925186f + 0.12761907279491425f;
  tail = tail * f + -0.1315600723028183f;
  tail = tail * f + 0.14201371371746063f;
  tail = tail * f + -0.16623803973197937f;
  tail = tail * f + 0.200012668967247f;
  tail = tail * f + -0.25000807642936707f;
  tail = tail * f + 0.3333333134651184f;
  const Floats small = f + (f * f) * (f * tail - 0.5f);
  const Floats whole = __builtin_convertvector(exponent, Floats);
  return whole * 0.693147181f + small;
}

static inline Doubles log_of_one_plus(Doubles x) {
  for (int i = 0; i < kDoubleLanes; ++i) x[i] = log1p(x[i]);
  return x;
}

}  // namespace MMFL_SIMD
}  // namespace mmfl
