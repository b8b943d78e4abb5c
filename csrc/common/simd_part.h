// Loads and stores of the first lanes of a vector. Included only by *_cpu_simd.cpp, see common/simd.h.
#pragma once

#if MMFL_SIMD_BYTES > 16
#include <immintrin.h>
#endif

#include <cstdint>

#include "common/simd.h"
#include "common/simd_address.h"

namespace mmfl {
namespace MMFL_SIMD {

// The first `count` lanes, 0 in the others; memory behind them is not touched.
static inline Floats load_part(const float* from, int count) {
  touch(from, count * static_cast<std::int64_t>(sizeof *from));
#if MMFL_SIMD_BYTES == 64
  return (Floats)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), from);
#elif MMFL_SIMD_BYTES == 32
  const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return (Floats)_mm256_maskload_ps(from, _mm256_cmpgt_epi32(_mm256_set1_epi32(count), lanes));
#else
  Floats value = {};
  for (int i = 0; i < count; ++i) value[i] = from[i];
  return value;
#endif
}

static inline void store_part(float* to, Floats value, int count) {
  touch(to, count * static_cast<std::int64_t>(sizeof *to));
#if MMFL_SIMD_BYTES == 64
  _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1u << count) - 1), (__m512)value);
#elif MMFL_SIMD_BYTES == 32
  const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  _mm256_maskstore_ps(to, _mm256_cmpgt_epi32(_mm256_set1_epi32(count), lanes), (__m256)value);
#else
  for (int i = 0; i < count; ++i) to[i] = value[i];
#endif
}

}  // namespace MMFL_SIMD
}  // namespace mmfl
