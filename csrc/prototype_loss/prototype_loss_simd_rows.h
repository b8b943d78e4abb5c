// Features and prototypes as rows that stand for their unit vectors. Included only by
// prototype_loss_cpu_simd.cpp, see common/simd.h.
#pragma once

#include <math.h>

#include "common/simd_dot.h"
#include "common/simd_pack.h"
#include "common/simd_scratch.h"
#include "prototype_loss/prototype_loss.h"

namespace mmfl {
namespace MMFL_SIMD {
namespace {

constexpr std::int64_t kTileFeatures = 64;  // rows of a tile
constexpr double kShortest = 1e-12;

inline std::int64_t smaller(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

// Elements between packed rows: an odd number of cache lines, so that rows do not compete for a cache set.
template <typename T>
std::int64_t pitch_for(std::int64_t count) {
  constexpr std::int64_t kLine = 64 / static_cast<std::int64_t>(sizeof(T));
  return (round_up(count, kLine) / kLine | 1) * kLine;
}

// Where element (i, j, 0) of a strided tensor lies.
inline Span span_of(const Strided& from, std::int64_t i, std::int64_t j) {
  const std::int64_t offset = (i * from.strides[0] + j * from.strides[1]) * size_of(from.dtype);
  return {static_cast<const char*>(from.data) + offset, from.strides[2], from.dtype};
}

// A row converted, with zeros up to the pitch.
template <typename T>
void fetch(const Span& span, std::int64_t dims, std::int64_t pitch, T* to) {
  pack<T>(span, 0, dims, to);
  for (std::int64_t d = dims; d < pitch; ++d) to[d] = 0;
}

template <typename T>
struct Unit {
  T inverse_length;  // what the row was multiplied with, 0 if it counts as 0
  bool finite;
};

// Scales a row of any size to unit length, or leaves it alone without `normalise`.
template <typename T>
Unit<T> make_unit(T* row, std::int64_t count, bool normalise) {
  double squares = static_cast<double>(dot(row, row, count));
  if (!in_safe_range(squares)) squares = wide_square(row, count);
  bool finite = squares - squares == 0;
  if (!finite) {
    // A finite row of doubles can have an infinite square.
    T zero = 0;
    for (std::int64_t i = 0; i < count; ++i) zero += row[i] * 0;
    finite = zero == 0;
  }
  if (!normalise) return {1, finite};
  const double length = sqrt(squares);
  const T inverse = length <= kShortest ? T{0} : static_cast<T>(1 / length);
  for (std::int64_t i = 0; i < count; ++i) row[i] *= inverse;
  return {inverse, finite};
}

// Rows [count, D]: where they lie, or a packed copy. Row i times inverse[i] is its unit vector, or without
// normalisation the row itself, which is `applied[i]` * inverse[i] times the original.
template <typename T>
struct UnitRows {
  const T* data;
  std::int64_t pitch;
  T inverse[kTileFeatures];
  T applied[kTileFeatures];
};

// Fills in `inverse` and `applied` of `count` rows that are not scaled yet. Rows whose squares leave the safe
// range, zero and non-finite ones among them, are scaled in `spare` [count, pitch] instead, where the tile
// then moves. With `blank` non-finite rows become zero.
template <typename T>
void measure(std::int64_t count, std::int64_t dims, bool normalise, bool blank, T* spare,
             std::int64_t spare_pitch, UnitRows<T>& rows) {
  T squares[kTileFeatures];
  squared_lengths(count, rows.data, rows.pitch, dims, squares);
  std::int64_t safe = 0;
  for (std::int64_t i = 0; i < count; ++i) safe += in_safe_range(squares[i]);
  for (std::int64_t i = 0; i < count; ++i) {
    rows.inverse[i] = normalise ? 1 / static_cast<T>(sqrt(squares[i])) : T{1};
    rows.applied[i] = 1;
  }
  if (safe == count) return;
  if (rows.data != spare)
    for (std::int64_t i = 0; i < count; ++i)
      fetch(Span{rows.data + i * rows.pitch, 1, kDTypeOf<T>}, dims, spare_pitch, spare + i * spare_pitch);
  rows.data = spare;
  rows.pitch = spare_pitch;
  for (std::int64_t i = 0; i < count; ++i) {
    if (in_safe_range(squares[i])) continue;
    T* row = spare + i * spare_pitch;
    const Unit<T> unit = make_unit(row, dims, normalise);
    rows.inverse[i] = 1;
    rows.applied[i] = unit.finite ? unit.inverse_length : T{0};
    if (blank && !unit.finite) std::memset(row, 0, static_cast<std::size_t>(spare_pitch) * sizeof(T));
  }
}

template <typename T>
void unpack(const T* from, DType dtype, void* data, std::int64_t first, std::int64_t count) {
  switch (dtype) {
    case DType::kFloat64: {
      double* to = static_cast<double*>(data) + first;
      for (std::int64_t i = 0; i < count; ++i) to[i] = from[i];
      return;
    }
    case DType::kFloat32: {
      float* to = static_cast<float*>(data) + first;
      for (std::int64_t i = 0; i < count; ++i) to[i] = static_cast<float>(from[i]);
      return;
    }
    case DType::kBFloat16: {
      std::uint16_t* to = static_cast<std::uint16_t*>(data) + first;
      for (std::int64_t i = 0; i < count; ++i) to[i] = bfloat16_from_float(static_cast<float>(from[i]));
      return;
    }
    case DType::kFloat16: {
      std::uint16_t* to = static_cast<std::uint16_t*>(data) + first;
      for (std::int64_t i = 0; i < count; ++i) to[i] = float16_from_float(static_cast<float>(from[i]));
      return;
    }
  }
}

}  // namespace
}  // namespace MMFL_SIMD
}  // namespace mmfl
