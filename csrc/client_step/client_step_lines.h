// Elementwise operations and sums over strided views, line by line. Included only by
// client_step_cpu_simd.cpp, see common/simd.h.
#pragma once

#include <cstdint>

#include "client_step/client_step.h"
#include "common/simd.h"
#include "common/simd_part.h"

namespace mmfl {
namespace MMFL_SIMD {

// A value in memory.
struct View {
  float* data;
  const std::int64_t* size;    // [kMaxAxes]
  const std::int64_t* stride;  // [kMaxAxes]
};

// Numbers that are apart. Not inlined, so that the rest of a line's code is.
[[gnu::noinline]] static Floats gather_part(const float* from, std::int64_t stride, int count) {
  Floats value = {};
  for (int l = 0; l < count; ++l) value[l] = from[l * stride];
  return value;
}

[[gnu::noinline]] static void scatter_part(float* to, std::int64_t stride, Floats value, int count) {
  for (int l = 0; l < count; ++l) to[l * stride] = value[l];
}

// The elements of one line: `stride` apart.
struct Line {
  float* data;
  std::int64_t stride;

  [[gnu::always_inline]] Floats at(std::int64_t i, int count) const {
    if (stride == 1) return count == kFloatLanes ? load(data + i) : load_part(data + i, count);
    if (stride == 0) return Floats{} + *data;
    return gather_part(data + i * stride, stride, count);
  }

  [[gnu::always_inline]] void put(std::int64_t i, Floats value, int count) const {
    if (stride != 1) return scatter_part(data + i * stride, stride, value, count);
    if (count == kFloatLanes) return store(data + i, value);
    store_part(data + i, value, count);
  }
};

// Calls body(start, count) for whole vectors, then for the rest.
template <typename Body>
static inline void for_vectors(std::int64_t length, Body body) {
  std::int64_t i = 0;
  for (; i + kFloatLanes <= length; i += kFloatLanes) body(i, kFloatLanes);
  if (i < length) body(i, static_cast<int>(length - i));
}

// Calls body(lines, length) for the lines of `kViews` views that run through `size` side by side; axes that
// are contiguous in all views are joined to longer lines.
template <int kViews, typename Body>
static void for_lines(const std::int64_t* size, const View (&views)[kViews], Body body) {
  std::int64_t sizes[kMaxAxes];
  std::int64_t strides[kViews][kMaxAxes];
  int axes = 0;
  for (int axis = 0; axis < kMaxAxes; ++axis) {
    if (size[axis] == 0) return;
    if (size[axis] == 1) continue;
    bool joins = axes > 0;
    for (int v = 0; v < kViews && joins; ++v)
      joins = strides[v][axes - 1] == views[v].stride[axis] * size[axis];
    if (!joins) sizes[axes++] = 1;
    sizes[axes - 1] *= size[axis];
    for (int v = 0; v < kViews; ++v) strides[v][axes - 1] = views[v].stride[axis];
  }
  Line lines[kViews];
  for (int v = 0; v < kViews; ++v) lines[v] = {views[v].data, axes > 0 ? strides[v][axes - 1] : 1};
  if (axes == 0) return body(lines, std::int64_t{1});
  std::int64_t index[kMaxAxes] = {};
  for (;;) {
    body(lines, sizes[axes - 1]);
    int axis = axes - 2;
    for (; axis >= 0; --axis) {
      for (int v = 0; v < kViews; ++v) lines[v].data += strides[v][axis];
      if (++index[axis] < sizes[axis]) break;
      for (int v = 0; v < kViews; ++v) lines[v].data -= strides[v][axis] * sizes[axis];
      index[axis] = 0;
    }
    if (axis < 0) return;
  }
}

template <typename Function>
static void map_one(View out, View a, Function function) {
  for_lines<2>(out.size, {out, a}, [&](const Line* lines, std::int64_t length) {
    for_vectors(length, [&](std::int64_t i, int n) { lines[0].put(i, function(lines[1].at(i, n)), n); });
  });
}

template <typename Function>
static void map_two(View out, View a, View b, Function function) {
  for_lines<3>(out.size, {out, a, b}, [&](const Line* lines, std::int64_t length) {
    for_vectors(length, [&](std::int64_t i, int n) {
      lines[0].put(i, function(lines[1].at(i, n), lines[2].at(i, n)), n);
    });
  });
}

// Lane by lane, for functions of the C library.
template <typename Function>
static inline Floats each_lane(Floats x, Function function) {
  for (int l = 0; l < kFloatLanes; ++l) x[l] = function(x[l]);
  return x;
}

// out = combine of the elements of a over the axes on which out has stride 0. `fold` combines the lanes of
// one vector.
template <typename Combine, typename Fold>
static void reduce(View out, View a, float identity, Combine combine, Fold fold) {
  std::int64_t kept[kMaxAxes];
  for (int axis = 0; axis < kMaxAxes; ++axis) kept[axis] = out.stride[axis] == 0 ? 1 : out.size[axis];
  const Floats start = Floats{} + identity;
  for_lines<1>(kept, {out}, [&](const Line* lines, std::int64_t length) {
    for_vectors(length, [&](std::int64_t i, int n) { lines[0].put(i, start, n); });
  });
  for_lines<2>(out.size, {out, a}, [&](const Line* lines, std::int64_t length) {
    if (lines[0].stride != 0 || length == 1) {
      for_vectors(length, [&](std::int64_t i, int n) {
        lines[0].put(i, combine(lines[0].at(i, n), lines[1].at(i, n)), n);
      });
      return;
    }
    Floats total = start;
    for_vectors(length, [&](std::int64_t i, int n) {
      Floats x = lines[1].at(i, n);
      for (int l = n; l < kFloatLanes; ++l) x[l] = identity;
      total = combine(total, x);
    });
    const Floats folded = Floats{} + fold(total);
    *lines[0].data = combine(Floats{} + *lines[0].data, folded)[0];
  });
}

}  // namespace MMFL_SIMD
}  // namespace mmfl
