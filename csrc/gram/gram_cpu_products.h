// Inner products of packed rows. Included only by gram_cpu_simd.cpp, see common/simd.h.
#pragma once

#include "common/simd.h"
#include "common/simd_lane_sums.h"
#include "gram/gram_cpu_prefetch.h"

namespace mmfl {
namespace MMFL_SIMD {

// One register tile: a quad with kTileCols rows of another. 16 accumulators need the 32 registers of AVX-512.
constexpr int kTileCols = MMFL_SIMD_BYTES == 64 ? 4 : 2;

// Where the product of row i of one quad with row j of the other is among the 16 of both.
constexpr int product_at(int i, int j) { return (j / kTileCols * kQuad + i) * kTileCols + j % kTileCols; }

// products[i][j] += row i of the left quad times row j of the right one, lane by lane; = if `first`.
template <typename T>
inline void multiply_quads(const T* left, const T* right, std::int64_t vectors, bool first,
                           typename Simd<T>::Vector* products, Prefetch& prefetch) {
  using Vector = typename Simd<T>::Vector;
  constexpr int kLanes = Simd<T>::kLanes;
  LinesAhead ahead = prefetch.lines;
  for (int column = 0; column < kQuad; column += kTileCols) {
    Vector sums[kQuad * kTileCols];
    for (int at = 0; at < kQuad * kTileCols; ++at) sums[at] = first ? Vector{} : products[at];
    const T *a = left, *b = right + column * kLanes;
    for (std::int64_t v = 0; v < vectors; ++v, a += kQuad * kLanes, b += kQuad * kLanes) {
      ahead.ask<3>();
      Vector others[kTileCols];
      for (int j = 0; j < kTileCols; ++j) others[j] = load(b + j * kLanes);
      for (int i = 0; i < kQuad; ++i) {
        const Vector own = load(a + i * kLanes);
        for (int j = 0; j < kTileCols; ++j) sums[i * kTileCols + j] += own * others[j];
      }
    }
    for (int at = 0; at < kQuad * kTileCols; ++at) products[at] = sums[at];
    products += kQuad * kTileCols;
  }
  prefetch.lines = ahead;
}

// products[i][j] = the sums of the lanes of what multiply_quads added up.
template <typename T>
inline void sum_lanes(const typename Simd<T>::Vector* lanes, T (&products)[kQuad][kQuad]) {
  constexpr int kLanes = Simd<T>::kLanes;
  for (int column = 0; column < kQuad; column += kTileCols) {
    T part[kQuad * kTileCols];
    for (int at = 0; at < kQuad * kTileCols; at += kLanes) store(part + at, lane_sums<T>(lanes + at));
    for (int i = 0; i < kQuad; ++i)
      for (int j = 0; j < kTileCols; ++j) products[i][column + j] = part[i * kTileCols + j];
    lanes += kQuad * kTileCols;
  }
}

}  // namespace MMFL_SIMD
}  // namespace mmfl
