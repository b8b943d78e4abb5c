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
// `column` is a multiple of kColumns. Elements of 16 bits stay as they are, in the place of the first ones:
// who loads from several rows asks for all of them before `widen` waits for the first.
template <typename T>
MMFL_DEVICE void load_packed(const void* data, bool narrow, std::int64_t column, T (&values)[kColumns<T>]) {
  if (narrow) {
    const Chunk8 chunk = load_8_bytes(static_cast<const std::uint16_t*>(data) + column);
    memcpy(values, chunk.words, sizeof chunk.words);
  } else {
    const Chunk16 chunk = load_16_bytes(static_cast<const T*>(data) + column);
    memcpy(values, chunk.words, sizeof values);
  }
}

template <typename T>
MMFL_DEVICE void widen(bool is_bfloat16, T (&values)[kColumns<T>]) {
  Chunk8 chunk;
  memcpy(chunk.words, values, sizeof chunk.words);
#pragma unroll
  for (int c = 0; c < kColumns<T>; ++c) {
    const auto bits = static_cast<std::uint16_t>(chunk.words[c / 2] >> (c % 2 * 16));
    values[c] = is_bfloat16 ? float_from_bfloat16(bits) : float_from_float16(bits);
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

// How load_row_packed has left the elements.
enum class Packing { kNone, kBFloat16, kFloat16 };

template <typename T>
MMFL_DEVICE Packing load_row_packed(const Span& span, std::int64_t column, std::int64_t width,
                                    T (&values)[kColumns<T>]) {
  if (takes_vectors<T>(span) && column + kColumns<T> <= width) {
    const bool narrow = span.dtype == DType::kBFloat16 || span.dtype == DType::kFloat16;
    load_packed<T>(span.data, narrow, column, values);
    if (!narrow) return Packing::kNone;
    return span.dtype == DType::kBFloat16 ? Packing::kBFloat16 : Packing::kFloat16;
  }
  load_some<T>(span, column, width, values);
  return Packing::kNone;
}

template <typename T>
MMFL_DEVICE void widen(Packing packing, T (&values)[kColumns<T>]) {
  if (packing != Packing::kNone) widen(packing == Packing::kBFloat16, values);
}

template <typename T>
MMFL_DEVICE void load_row(const Span& span, std::int64_t column, std::int64_t width,
                          T (&values)[kColumns<T>]) {
  widen(load_row_packed(span, column, width, values), values);
}

template <typename T>
MMFL_DEVICE void store_element(void* data, DType dtype, std::int64_t at, T value) {
  switch (dtype) {
    case DType::kFloat64:
      static_cast<double*>(data)[at] = static_cast<double>(value);
      break;
    case DType::kFloat32:
      static_cast<float*>(data)[at] = static_cast<float>(value);
      break;
    case DType::kBFloat16:
      static_cast<std::uint16_t*>(data)[at] = bfloat16_from_float(static_cast<float>(value));
      break;
    case DType::kFloat16:
      static_cast<std::uint16_t*>(data)[at] = float16_from_float(static_cast<float>(value));
      break;
  }
}

// To columns [column, column + kColumns), as far as they lie below `width`, of the row that starts at element
// `start` of `data`.
template <typename T>
MMFL_DEVICE void store_row(void* data, DType dtype, std::int64_t start, std::int64_t column,
                           std::int64_t width, const T (&values)[kColumns<T>]) {
  const std::int64_t first = start + column;
  const bool narrow = dtype == DType::kBFloat16 || dtype == DType::kFloat16;
  const std::int64_t size = narrow ? 2 : static_cast<std::int64_t>(sizeof(T));
  char* to = static_cast<char*>(data) + first * size;
  const bool fits = narrow || (dtype == DType::kFloat64) == (sizeof(T) == 8);
  const bool whole =
      fits && column + kColumns<T> <= width &&
      reinterpret_cast<std::uintptr_t>(to) % static_cast<std::uintptr_t>(size * kColumns<T>) == 0;
  if (whole && !narrow) {
    Chunk16 chunk;
    memcpy(chunk.words, values, sizeof values);
    store_16_bytes(to, chunk);
  } else if (whole && kColumns<T> == 4) {
    Chunk8 chunk{};
#pragma unroll
    for (int c = 0; c < kColumns<T>; ++c) {
      const auto value = static_cast<float>(values[c]);
      const std::uint32_t bits =
          dtype == DType::kBFloat16 ? bfloat16_from_float(value) : float16_from_float(value);
      chunk.words[c / 2] |= bits << (c % 2 * 16);
    }
    store_8_bytes(to, chunk);
  } else {
#pragma unroll
    for (int c = 0; c < kColumns<T>; ++c)
      if (column + c < width) store_element(data, dtype, first + c, values[c]);
  }
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
