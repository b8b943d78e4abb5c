// A panel's rows of one tile, shifted and packed. Included only by gram_cpu_simd.cpp, see common/simd.h.
#pragma once

#include "common/simd.h"
#include "common/simd_lane_sums.h"
#include "common/simd_scratch.h"
#include "gram/gram_cpu_prefetch.h"
#include "gram/gram_cpu_products.h"
#include "gram/gram_cpu_rows.h"

namespace mmfl {
namespace MMFL_SIMD {

// Rows whose tiles are multiplied with each other at a time.
constexpr std::int64_t kPanelRows = 256;
// Blocks of a tile: enough for the sums across lanes to cost little, few enough for a whole panel to stay in
// a second-level cache of 1 MiB.
constexpr std::int64_t kTileBlocks = 4;
// The same for one group, of which only a block is packed at a time.
constexpr std::int64_t kGroupTileBlocks = 8;

// Columns [first, first + count).
struct Tile {
  std::int64_t first;
  std::int64_t count;
};

// Packs four rows less `shift` and each row's `own`. What is packed is added to the rows' sums and multiplied
// with each other into `products`, lane by lane: the registers hold it, and reading alone leaves time for
// both.
template <typename T>
inline void pack_quad(const T* const* rows, const T* shift, const T* own, std::int64_t vectors, T* to,
                      typename Simd<T>::Vector* sums, typename Simd<T>::Vector* products,
                      Prefetch& prefetch) {
  using Vector = typename Simd<T>::Vector;
  constexpr int kLanes = Simd<T>::kLanes;
  LinesAhead ahead = prefetch.lines;
  const T* from[kQuad];
  Vector mean[kQuad], sum[kQuad], pairs[kQuad][kQuad];
  for (int i = 0; i < kQuad; ++i) {
    from[i] = rows[i];
    mean[i] = Vector{} + own[i];
    sum[i] = sums[i];
    for (int j = 0; j < kQuad; ++j) pairs[i][j] = products[product_at(i, j)];
  }
  for (std::int64_t p = 0; p < vectors * kLanes; p += kLanes, to += kQuad * kLanes) {
    const Vector common = load(shift + p);
    Vector packed[kQuad];
    ahead.ask<1>();
    for (int i = 0; i < kQuad; ++i) {
      packed[i] = (load(from[i] + p) - common) - mean[i];
      store(to + i * kLanes, packed[i]);
      sum[i] += packed[i];
    }
    for (int i = 0; i < kQuad; ++i)
      for (int j = 0; j < kQuad; ++j)
        if (i <= j) pairs[i][j] += packed[i] * packed[j];
  }
  prefetch.lines = ahead;
  for (int i = 0; i < kQuad; ++i) {
    sums[i] = sum[i];
    for (int j = 0; j < kQuad; ++j) products[product_at(i, j)] = i <= j ? pairs[i][j] : pairs[j][i];
  }
}

template <typename T>
class Panel {
 public:
  using Vector = typename Simd<T>::Vector;

  static std::int64_t bytes(std::int64_t count) {
    const std::int64_t padded = round_up(count, kPadding);
    const std::int64_t vectors = padded * (1 + kQuad);
    const std::int64_t elements =
        padded * (kTileBlocks * kBlock<T> + 2) + kBlock<T> + vectors * Simd<T>::kLanes;
    return BlockRows<T>::bytes(count) + elements * static_cast<std::int64_t>(sizeof(T)) + 4 * 8 * padded;
  }

  // `centroid` [P] is that of all rows when the panel does not hold them all, or null.
  Panel(const GramRows& args, std::int64_t number, const T* centroid, Scratch& scratch)
      : first(number * kPanelRows),
        count(smaller(kPanelRows, args.rows - first)),
        quads((count + kQuad - 1) / kQuad),
        args_(args),
        whole_tile_(!one_group(args.rows)),
        centroid_(centroid),
        rows_(args, first, count, scratch) {
    const std::int64_t padded = round_up(count, kPadding);
    packed_ = scratch.take<T>((whole_tile_ ? kTileBlocks : 1) * kBlock<T> * quads * kQuad);
    shift_ = scratch.take<T>(kBlock<T>);
    sums_ = scratch.take<Vector>(padded);
    products_ = scratch.take<Vector>(padded * kQuad);
    own_ = scratch.take<T>(padded);
    totals_ = scratch.take<T>(padded);
    mean = scratch.take<double>(padded);
    between = scratch.take<double>(padded);
    step = scratch.take<double>(padded);
    residue = scratch.take<double>(padded);
    for (std::int64_t r = 0; r < padded; ++r) mean[r] = between[r] = step[r] = residue[r] = own_[r] = 0;
    for (std::int64_t p = 0; p < kBlock<T>; ++p) shift_[p] = 0;
  }

  // Packs a block of the tile, in order from the first one. With centre_rows a row loses the mean of its
  // elements so far, at first that of the tile; the rest, its residue, is removed from the products.
  void pack(const Tile& tile, std::int64_t at, Prefetch& prefetch) {
    if (at == 0) {
      if (args_.centre_rows && columns_ == 0) find_means(tile);
      for (std::int64_t r = 0; r < count; ++r) own_[r] = static_cast<T>(mean[r]);
      clear_sums();
    }
    const Block block = block_at<T>(args_, tile.first + at);
    rows_.locate(block, prefetch);
    const T* shift = shift_of(block);
    T* to = packed_ + (whole_tile_ ? at * quads * kQuad : 0);
    // So that the columns behind the last one are zero when they are packed.
    for (std::int64_t p = block.count; p < block.vectors * Simd<T>::kLanes; ++p)
      for (std::int64_t r = 0; r < count; ++r) rows_.copy(r)[p] = own_[r];
    pack_quads(block, shift, to, prefetch);
  }

  // After the last block. Chan, Golub and LeVeque (1983): sums of products about the mean, joined with those
  // of the columns before the tile.
  void join_means(const Tile& tile) {
    take_totals();
    const double columns = static_cast<double>(tile.count), before = static_cast<double>(columns_);
    const double share = columns / (before + columns);
    for (std::int64_t r = 0; r < count; ++r) {
      residue[r] = static_cast<double>(totals_[r]);
      step[r] = static_cast<double>(own_[r]) + residue[r] / columns - mean[r];
      mean[r] += share * step[r];
      between[r] = step[r] * before * share;
    }
    columns_ += tile.count;
  }

  // Four packed rows of the block that starts `at` columns into the tile.
  const T* packed(std::int64_t at, std::int64_t quad) const {
    return packed_ + ((whole_tile_ ? at * quads : 0) + quad * kBlock<T>)*kQuad;
  }
  // The products of a quad with itself in the tile, lane by lane.
  const Vector* products(std::int64_t quad) const { return products_ + quad * kQuad * kQuad; }
  bool bad(std::int64_t r) const { return rows_.bad(r); }

  const std::int64_t first;  // row
  const std::int64_t count;
  const std::int64_t quads;
  double* mean;     // [count] of the row over the tiles so far; before the first, its estimate
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

  // The means of the rows' elements in the tile, for which it is read once more than the others.
  void find_means(const Tile& tile) {
    clear_sums();
    for (std::int64_t at = 0; at < tile.count; at += kBlock<T>) {
      const Block block = block_at<T>(args_, tile.first + at);
      Prefetch none;
      rows_.locate(block, none);
      const T* shift = shift_of(block);
      for (std::int64_t r = 0; r < count; ++r) {
        const T* row = rows_.at()[r];
        Vector sum = sums_[r];
        for (std::int64_t p = 0; p < block.vectors * Simd<T>::kLanes; p += Simd<T>::kLanes)
          sum += load(row + p) - load(shift + p);
        sums_[r] = sum;
      }
    }
    take_totals();
    for (std::int64_t r = 0; r < count; ++r)
      mean[r] = static_cast<double>(totals_[r]) / static_cast<double>(tile.count);
  }

  void clear_sums() {
    for (std::int64_t r = 0; r < round_up(count, kPadding); ++r) sums_[r] = Vector{};
    for (std::int64_t at = 0; at < quads * kQuad * kQuad; ++at) products_[at] = Vector{};
  }

  void pack_quads(const Block& block, const T* shift, T* to, Prefetch& prefetch) {
    for (std::int64_t q = 0; q < quads; ++q) {
      pack_quad(rows_.at() + q * kQuad, shift, own_ + q * kQuad, block.vectors, to + q * kQuad * kBlock<T>,
                sums_ + q * kQuad, products_ + q * kQuad * kQuad, prefetch);
      prefetch.step();
    }
  }

  void take_totals() {
    for (std::int64_t r = 0; r < round_up(count, kPadding); r += Simd<T>::kLanes)
      store(totals_ + r, lane_sums<T>(sums_ + r));
  }

  const GramRows& args_;
  const bool whole_tile_;  // is packed, or only a block at a time
  const T* centroid_;
  BlockRows<T> rows_;
  std::int64_t columns_ = 0;  // of the tiles before this one, with centre_rows
  T* packed_;                 // [blocks, quads, kBlock / kLanes, kQuad, kLanes]
  T* shift_;                  // [kBlock] zeros while there is no origin
  Vector* sums_;              // [count, to whole kPadding] of packed elements
  Vector* products_;          // [quads, kQuad * kQuad] as product_at says
  T* own_;                    // [count, to whole kPadding] subtracted from all elements of a row
  T* totals_;                 // likewise
};

}  // namespace MMFL_SIMD
}  // namespace mmfl
