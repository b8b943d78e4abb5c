// A few elements of a row at a time, in the type a kernel computes in.
#pragma once

#include "common/device.cuh"
#include "common/dtype.h"
#include "common/span.h"

namespace mmfl {
namespace device {

// Elements of a row that a lane reads at a time: 16 bytes of the compute type.
template <typename T>
constexpr int kColumns = 16 / static_cast<int>(sizeof(T));

template <typename T>
MMFL_DEVICE T load_element(const Span& span, std::int64_t column) {
  const std::int64_t at = column * span.stride;
  switch (span.dtype) {
    case DType::kFloat64:
      return static_cast<T>(static_cast<const double*>(span.data)[at]);
    case DType::kFloat32:
      return static_cast<T>(static_cast<const float*>(span.data)[at]);
    case DType::kBFloat16:
      return static_cast<T>(float_from_bfloat16(static_cast<const std::uint16_t*>(span.data)[at]));
    default:
      return static_cast<T>(float_from_float16(static_cast<const std::uint16_t*>(span.data)[at]));
  }
}

// Whether load_whole reads this span: it starts on 16 bytes, or on 8 where the elements have two of them.
template <typename T>
MMFL_DEVICE bool takes_vectors(const Span& span) {
  const auto address = reinterpret_cast<std::uintptr_t>(span.data);
  if (span.stride != 1) return false;
  if (sizeof(T) == 8) return span.dtype == DType::kFloat64 && address % 16 == 0;
  if (span.dtype == DType::kFloat32) return address % 16 == 0;
  return span.dtype != DType::kFloat64 && address % 8 == 0;
}

// Columns [column, column + kColumns) of a span for which takes_vectors holds; they lie in the row and
// `column` is a multiple of kColumns.
template <typename T>
MMFL_DEVICE void load_whole(const void* data, DType dtype, std::int64_t column, T (&values)[kColumns<T>]) {
  if (dtype == DType::kFloat32 || dtype == DType::kFloat64) {
    const Chunk16 chunk = load_16_bytes(static_cast<const T*>(data) + column);
    memcpy(values, chunk.words, sizeof values);
    return;
  }
  const Chunk8 chunk = load_8_bytes(static_cast<const std::uint16_t*>(data) + column);
#pragma unroll
  for (int c = 0; c < kColumns<T>; ++c) {
    const auto bits = static_cast<std::uint16_t>(chunk.words[c / 2] >> (c % 2 * 16));
    values[c] = dtype == DType::kBFloat16 ? float_from_bfloat16(bits) : float_from_float16(bits);
  }
}

// The same of any span; columns from `width` on are 0.
template <typename T>
MMFL_DEVICE void load_some(const Span& span, std::int64_t column, std::int64_t width,
                           T (&values)[kColumns<T>]) {
#pragma unroll
  for (int c = 0; c < kColumns<T>; ++c)
    values[c] = column + c < width ? load_element<T>(span, column + c) : T(0);
}

// The last i in [0, count) with starts[i] <= at, for ascending `starts`: the segment that holds `at`.
MMFL_DEVICE std::int64_t segment_of(const std::int64_t* starts, std::int64_t count, std::int64_t at) {
  std::int64_t low = 0, high = count;
  while (high - low > 1) {
    const std::int64_t middle = (low + high) / 2;
    if (starts[middle] <= at) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

}  // namespace device
}  // namespace mmfl
