// Elements of a row, in the type a kernel computes in. Included only by *_cpu_simd.cpp, see common/simd.h.
#pragma once

#include <cstdint>

#include "common/simd.h"
#include "common/span.h"

namespace mmfl {
namespace MMFL_SIMD {

template <typename T, typename Stored, typename Widen>
static void pack_from(const void* data, std::int64_t stride, std::int64_t first, std::int64_t count, T* to,
                      Widen widen_one) {
  const Stored* from = static_cast<const Stored*>(data) + first * stride;
  if (stride == 1) {
    for (std::int64_t i = 0; i < count; ++i) to[i] = static_cast<T>(widen_one(from[i]));
  } else {
    for (std::int64_t i = 0; i < count; ++i) to[i] = static_cast<T>(widen_one(from[i * stride]));
  }
}

// The type code of T.
template <typename T>
constexpr DType kDTypeOf = sizeof(T) == 8 ? DType::kFloat64 : DType::kFloat32;

// Elements that need no conversion, side by side in memory; or null.
template <typename T>
static inline const T* as_plain(const Span& span) {
  return span.stride == 1 && span.dtype == kDTypeOf<T> ? static_cast<const T*>(span.data) : nullptr;
}

// Writes elements [first, first + count) of the span to `to`.
template <typename T>
static void pack(const Span& span, std::int64_t first, std::int64_t count, T* to) {
  switch (span.dtype) {
    case DType::kFloat64:
      return pack_from<T, double>(span.data, span.stride, first, count, to, [](double x) { return x; });
    case DType::kFloat32:
      return pack_from<T, float>(span.data, span.stride, first, count, to, [](float x) { return x; });
    case DType::kBFloat16:
      return pack_from<T, std::uint16_t>(span.data, span.stride, first, count, to,
                                         [](std::uint16_t x) { return float_from_bfloat16(x); });
    case DType::kFloat16:
      return pack_from<T, std::uint16_t>(span.data, span.stride, first, count, to,
                                         [](std::uint16_t x) { return float_from_float16(x); });
  }
}

}  // namespace MMFL_SIMD
}  // namespace mmfl
