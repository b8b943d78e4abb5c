// A panel's rows of one tile, shifted and packed. Included only by gram_cpu_simd.cpp, see common/simd.h.
#pragma once

#include "common/simd.h"
#include "common/simd_lane_sums.h"
#include "common/simd_scratch.h"
#include "gram/gram_cpu_products.h"
#include "gram/gram_cpu_rows.h"

namespace mmfl {
namespace MMFL_SIMD {

// Rows whose tiles are multiplied with each other at a time.
constexpr std::int64_t kPanelRows = 256;
// Blocks of a tile: enough for the sums across lanes to cost little, few enough for a whole panel to stay in
// a second-level cache of 1 MiB.
constexpr std::int64_t kTileBlocks = 4;

// Columns [first, first + count).
struct Tile {
  std::int64_t first;
  std::int64_t count;
};

// Packs four rows less `shift` and each row's `own`, and adds what is packed to the rows' sums lane by lane.
template <typename T>
inline void pack_quad(const T* const* rows, const T* shift, const T* own, std::int64_t vectors, T* to,
                      typename Simd<T>::Vector* sums) {
  using Vector = typename Simd<T>::Vector;
  constexpr int kLanes = Simd<T>::kLanes;
  const T *a = rows[0], *b = rows[1], *c = rows[2], *d = rows[3];
  const Vector own_a = Vector{} + own[0], own_b = Vector{} + own[1];
  const Vector own_c = Vector{} + own[2], own_d = Vector{} + own[3];
  Vector sum_a = sums[0], sum_b = sums[1], sum_c = sums[2], sum_d = sums[3];
  for (std::int64_t p = 0; p < vectors * kLanes; p += kLanes, to += kQuad * kLanes) {
    const Vector common = load(shift + p);
    const Vector x = (load(a + p) - common) - own_a, y = (load(b + p) - common) - own_b;
    const Vector z = (load(c + p) - common) - own_c, w = (load(d + p) - common) - own_d;
    store(to, x);
    store(to + kLanes, y);
    store(to + 2 * kLanes, z);
    store(to + 3 * kLanes, w);
    sum_a += x;
    sum_b += y;
    sum_c += z;
    sum_d += w;
  }
  sums[0] = sum_a;
  sums[1] = sum_b;
  sums[2] = sum_c;
  sums[3] = sum_d;
}

// So few rows are packed and multiplied block by block, inside the first-level cache.
inline bool one_group(std::int64_t rows) { return rows <= kGroup * kQuad; }

template <typename T>
class Panel {
 public:
  using Vector = typename Simd<T>::Vector;

  static std::int64_t bytes(std::int64_t count) {
    const std::int64_t padded = round_up(count, kPadding);
    const std::int64_t elements = padded * (kTileBlocks * kBlock<T> + Simd<T>::kLanes + 2) + kBlock<T>;
    return BlockRows<T>::bytes(count) + elements * static_cast<std::int64_t>(sizeof(T)) + 4 * 8 * padded;
  }

  // `centroid` [P] is that of all rows when the panel does not hold them all, or null.
  Panel(const GramRows& args, std::int64_t number, const T* centroid, Scratch& scratch)
      : first(number * kPanelRows),
        count(smaller(kPanelRows, args.rows - first)),
        quads((count + kQuad - 1) / kQuad),
        args_(args),
        capacity_((one_group(args.rows) ? 1 : kTileBlocks) * kBlock<T>),
        centroid_(centroid),
        rows_(args, first, count, scratch) {
    const std::int64_t padded = round_up(count, kPadding);
    packed_ = scratch.take<T>(capacity_ * quads * kQuad);
    shift_ = scratch.take<T>(kBlock<T>);
    sums_ = scratch.take<Vector>(padded);
    own_ = scratch.take<T>(padded);
    totals_ = scratch.take<T>(padded);
    mean = scratch.take<double>(padded);
    between = scratch.take<double>(padded);
    step = scratch.take<double>(padded);
    residue = scratch.take<double>(padded);
    for (std::int64_t r = 0; r < padded; ++r) mean[r] = between[r] = step[r] = residue[r] = 0;
    for (std::int64_t p = 0; p < kBlock<T>; ++p) shift_[p] = 0;
  }

  // Packs a block of the tile, in order from the first one. With centre_rows a row loses the mean of its
  // elements in the tile's first block, which is near enough to that of the tile; the rest, its residue, is
  // removed from the products.
  void pack(const Tile& tile, std::int64_t at) {
    const Block block = block_at<T>(args_, tile.first + at);
    rows_.locate(block);
    const T* shift = shift_of(block);
    T* to = packed_ + (at % capacity_) * quads * kQuad;
    if (at == 0) {
      clear_sums();
      for (std::int64_t r = 0; r < round_up(count, kPadding); ++r) own_[r] = 0;
      if (args_.centre_rows) {
        pack_quads(block, shift, to);
        take_totals();
        for (std::int64_t r = 0; r < count; ++r) own_[r] = totals_[r] / static_cast<T>(block.count);
        clear_sums();
      }
    }
    // So that the columns behind the last one are zero when they are packed.
    for (std::int64_t r = 0; r < count; ++r)
      for (std::int64_t p = block.count; p < block.vectors * Simd<T>::kLanes; ++p) rows_.copy(r)[p] = own_[r];
    pack_quads(block, shift, to);
  }

  // After the last block. Chan, Golub and LeVeque (1983): sums of products about the mean, joined with those
  // of the columns before the tile.
  void join_means(const Tile& tile, std::int64_t columns_before) {
    take_totals();
    const double columns = static_cast<double>(tile.count), before = static_cast<double>(columns_before);
    const double share = columns / (before + columns);
    for (std::int64_t r = 0; r < count; ++r) {
      residue[r] = static_cast<double>(totals_[r]);
      step[r] = static_cast<double>(own_[r]) + residue[r] / columns - mean[r];
      mean[r] += share * step[r];
      between[r] = step[r] * before * share;
    }
  }

  // Four packed rows of the block that starts `at` columns into the tile.
  const T* packed(std::int64_t at, std::int64_t quad) const {
    return packed_ + ((at % capacity_) * quads + quad * kBlock<T>)*kQuad;
  }
  bool bad(std::int64_t r) const { return rows_.bad(r); }

  const std::int64_t first;  // row
  const std::int64_t count;
  const std::int64_t quads;
  double* mean;     // [count] of the row over the tiles so far
  double* between;  // [count] weight * (the tile's mean - the mean so far)
  double* step;     // [count] the tile's mean - the mean so far
  double* residue;  // [count] sum of the row's packed elements

 private:
  // To whole quads and to whole vectors of row sums.
  static constexpr std::int64_t kPadding = 16;

  const T* shift_of(const Block& block) {
    if (centroid_ != nullptr) return centroid_ + block.first;
    if (args_.mean_origin) {
      rows_.centroid(block.vectors, shift_);
    } else if (args_.origin != nullptr) {
      const T* origin = read_row(args_, args_.origin, block, shift_);
      if (!is_finite(origin, block.vectors)) rows_.leave_out_all();
      return origin;
    }
    return shift_;
  }

  void clear_sums() {
    for (std::int64_t r = 0; r < round_up(count, kPadding); ++r) sums_[r] = Vector{};
  }

  void pack_quads(const Block& block, const T* shift, T* to) {
    for (std::int64_t q = 0; q < quads; ++q)
      pack_quad(rows_.at() + q * kQuad, shift, own_ + q * kQuad, block.vectors, to + q * kQuad * kBlock<T>,
                sums_ + q * kQuad);
  }

  void take_totals() {
    for (std::int64_t r = 0; r < round_up(count, kPadding); r += Simd<T>::kLanes)
      store(totals_ + r, lane_sums<T>(sums_ + r));
  }

  const GramRows& args_;
  const std::int64_t capacity_;  // columns packed at a time
  const T* centroid_;
  BlockRows<T> rows_;
  T* packed_;     // [capacity / kBlock, quads, kBlock / kLanes, kQuad, kLanes]
  T* shift_;      // [kBlock] zeros while there is no origin
  Vector* sums_;  // [count, to whole kPadding] of packed elements
  T* own_;        // likewise, subtracted from all elements of a row
  T* totals_;     // likewise
};

}  // namespace MMFL_SIMD
}  // namespace mmfl
