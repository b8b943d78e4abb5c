// Softmax and labels. Included only by client_step_cpu_simd.cpp, see common/simd.h.
#pragma once

#include <math.h>

#include <cstdint>

#include "client_step/client_step_lines.h"
#include "common/simd_exp.h"

namespace mmfl {
namespace MMFL_SIMD {

// e^x for any x.
static inline Floats exponential_of_any(Floats x) {
  return x > 88.72284f ? Floats{} + INFINITY : exponential(x);
}

// The sizes of a matrix stand behind leading axes of size 1.
constexpr int kRowAxis = kMaxAxes - 2;
constexpr int kColumnAxis = kMaxAxes - 1;

static inline Line row_of(View matrix, std::int64_t row) {
  return {matrix.data + row * matrix.stride[kRowAxis], matrix.stride[kColumnAxis]};
}

static void log_softmax(View out, View a) {
  const std::int64_t columns = out.size[kColumnAxis];
  for (std::int64_t r = 0; r < out.size[kRowAxis]; ++r) {
    const Line from = row_of(a, r), to = row_of(out, r);
    float largest = -INFINITY;
    for (std::int64_t c = 0; c < columns; ++c) {
      const float x = from.data[c * from.stride];
      // A NaN stays, as the largest.
      largest = x > largest || x != x ? x : largest;
    }
    float total = 0;
    for_vectors(columns, [&](std::int64_t c, int n) {
      const Floats e = exponential(from.at(c, n) - largest);
      for (int l = 0; l < n; ++l) total += e[l];
    });
    const float shift = largest + logf(total);
    for_vectors(columns, [&](std::int64_t c, int n) { to.put(c, from.at(c, n) - shift, n); });
  }
}

static void log_softmax_backward(View out, View gradient, View result) {
  const std::int64_t columns = out.size[kColumnAxis];
  for (std::int64_t r = 0; r < out.size[kRowAxis]; ++r) {
    const Line g = row_of(gradient, r), y = row_of(result, r), to = row_of(out, r);
    float total = 0;
    for (std::int64_t c = 0; c < columns; ++c) total += g.data[c * g.stride];
    for_vectors(columns,
                [&](std::int64_t c, int n) { to.put(c, g.at(c, n) - exponential(y.at(c, n)) * total, n); });
  }
}

// Whether every label is a column or ignored.
static bool labels_fit(View labels, std::int64_t rows, std::int64_t columns, std::int64_t ignored) {
  for (std::int64_t r = 0; r < rows; ++r) {
    const auto label = static_cast<std::int64_t>(labels.data[r * labels.stride[kColumnAxis]]);
    if (label != ignored && (label < 0 || label >= columns)) return false;
  }
  return true;
}

static bool pick(View out, View a, View labels, std::int64_t ignored) {
  const std::int64_t rows = a.size[kRowAxis];
  if (!labels_fit(labels, rows, a.size[kColumnAxis], ignored)) return false;
  for (std::int64_t r = 0; r < rows; ++r) {
    const auto label = static_cast<std::int64_t>(labels.data[r * labels.stride[kColumnAxis]]);
    const Line from = row_of(a, r);
    out.data[r * out.stride[kColumnAxis]] = label == ignored ? 0 : from.data[label * from.stride];
  }
  return true;
}

static bool spread(View out, View values, View labels, std::int64_t ignored) {
  const std::int64_t rows = out.size[kRowAxis], columns = out.size[kColumnAxis];
  if (!labels_fit(labels, rows, columns, ignored)) return false;
  for (std::int64_t r = 0; r < rows; ++r) {
    const Line to = row_of(out, r);
    for_vectors(columns, [&](std::int64_t c, int n) { to.put(c, Floats{}, n); });
    const auto label = static_cast<std::int64_t>(labels.data[r * labels.stride[kColumnAxis]]);
    if (label != ignored) to.data[label * to.stride] = values.data[r * values.stride[kColumnAxis]];
  }
  return true;
}

}  // namespace MMFL_SIMD
}  // namespace mmfl
