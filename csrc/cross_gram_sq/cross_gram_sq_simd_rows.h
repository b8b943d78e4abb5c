// The n x n form, ||X_i^T X_j||_F^2 = <X_i X_i^T, X_j X_j^T>. A run of tiles of the Gram matrices X_i X_i^T
// is held for all views at a time, and their inner products are added up. Included only by
// cross_gram_sq_cpu_simd.cpp, see common/simd.h.
#pragma once

#include "common/simd_transpose.h"
#include "cross_gram_sq/cross_gram_sq_simd_views.h"

namespace mmfl {
namespace MMFL_SIMD {
namespace {

constexpr std::int64_t kHeldTileBytes = std::int64_t{32} << 20;
// Parts of a run of tiles that are reduced side by side, and summed in this order.
constexpr std::int64_t kParts = 16;

template <typename T>
class RowForm {
 public:
  RowForm(const Views<T>& views, double* out)
      : views_(views), out_(out), tiles_(triangle(pieces(views.rows(), kTile))) {}

  // Adds to the upper triangle of `out`. False if there was no memory.
  bool run() {
    const std::int64_t count = views_.count();
    const std::int64_t run = smaller(tiles_, larger(1, kHeldTileBytes / (count * kTileSize * kSize)));
    const std::int64_t pairs = triangle(pieces(count, kTile));
    const std::int64_t parts = smaller(run, larger(1, kParts / pairs));
    // One more cache line, so that views of a register tile do not compete for a cache set.
    pitch_ = run * kTileSize + kLine;
    Scratch scratch(count * pitch_ * kSize + pairs * parts * kTileSize * 8);
    if (!scratch.whole()) return false;
    held_ = scratch.take<T>(count * pitch_);
    double* sums = scratch.take<double>(pairs * parts * kTileSize);
    clear(sums, pairs * parts * kTileSize);

    Flag failed;
    for (std::int64_t first = 0; first < tiles_ && !failed.raised(); first += run) {
      const std::int64_t held = smaller(run, tiles_ - first);
      const std::int64_t column = place_of(first).column;
      const std::int64_t columns = place_of(first + held - 1).column - column + 1;
      parallel_for(count * columns, views_.threads(), [&](std::int64_t task) {
        if (!hold_tiles(task / columns, column + task % columns, first, held)) failed.raise();
      });
      if (failed.raised()) break;
      parallel_for(pairs * parts, views_.threads(), [&](std::int64_t task) {
        const std::int64_t part = task % parts;
        const std::int64_t begin = held * part / parts, end = held * (part + 1) / parts;
        if (!add_views(place_of(task / parts), first, begin, end, sums + task * kTileSize)) failed.raise();
      });
    }
    for (std::int64_t task = 0; task < pairs * parts; ++task)
      add_to_out(place_of(task / parts), sums + task * kTileSize);
    return !failed.raised();
  }

 private:
  static constexpr std::int64_t kSize = sizeof(T);
  static constexpr std::int64_t kLine = 64 / kSize;

  static std::int64_t triangle(std::int64_t n) { return n * (n + 1) / 2; }

  // Tiles of the Gram matrix of one view in block column `column`, those of [first, first + count).
  bool hold_tiles(std::int64_t view, std::int64_t column, std::int64_t first, std::int64_t count) const {
    const std::int64_t columns = views_.columns(view);
    const std::int64_t top = triangle(column);
    const std::int64_t begin = larger(first, top) - top;
    const std::int64_t end = smaller(first + count, top + column + 1) - top;
    const std::int64_t depth = round_up(columns, Simd<T>::kLanes);
    Scratch scratch((depth * kTile + kTile * kRowPitch + kTileSize) * kSize + kTileSize * 8);
    if (!scratch.whole()) return false;
    T* right = scratch.take<T>(depth * kTile);
    T* left = scratch.take<T>(kTile * kRowPitch);
    T* product = scratch.take<T>(kTileSize);
    double* total = scratch.take<double>(kTileSize);
    for (std::int64_t d = 0; d < columns; d += kMultiplyDepth) {
      const std::int64_t width = read_rows(view, column, d, left);
      for (std::int64_t r = 0; r < kTile; r += kTileColumns<T>)
        transpose(kTileColumns<T>, round_up(width, Simd<T>::kLanes), left + r * kRowPitch, kRowPitch,
                  right + r * depth + d * kTileColumns<T>, kTileColumns<T>);
    }

    for (std::int64_t row = begin; row < end; ++row) {
      T* to = held_ + view * pitch_ + (top + row - first) * kTileSize;
      const std::int64_t height = smaller(kTile, views_.rows() - row * kTile);
      // Sums of at most kMultiplyDepth products are the tile; longer ones are added up in double.
      if (columns > kMultiplyDepth) clear(total, height * kTile);
      for (std::int64_t d = 0; d < columns; d += kMultiplyDepth) {
        const std::int64_t width = read_rows(view, row, d, left);
        multiply<T>(height, kTile, width, {left, kRowPitch, 1},
                    {right + d * kTileColumns<T>, kTileColumns<T>, kTileColumns<T> * depth},
                    {columns > kMultiplyDepth ? product : to, kTile}, false);
        if (columns > kMultiplyDepth)
          for (std::int64_t i = 0; i < height * kTile; ++i) total[i] += product[i];
      }
      if (columns > kMultiplyDepth)
        for (std::int64_t i = 0; i < height * kTile; ++i) to[i] = static_cast<T>(total[i]);
      // A view without columns has no products either.
      const std::int64_t made = columns > 0 ? height * kTile : 0;
      clear(to + made, kTileSize - made);
    }
    return true;
  }

  // A block of kTile rows from column `first` on, at most kMultiplyDepth of them; returns how many. Behind
  // the last column up to whole vectors, and for rows behind the last, are zeros.
  std::int64_t read_rows(std::int64_t view, std::int64_t block, std::int64_t first, T* to) const {
    const std::int64_t width = smaller(kMultiplyDepth, views_.columns(view) - first);
    const std::int64_t height = smaller(kTile, views_.rows() - block * kTile);
    for (std::int64_t r = 0; r < height; ++r) {
      views_.read(view, block * kTile + r, first, width, to + r * kRowPitch);
      for (std::int64_t i = width; i % Simd<T>::kLanes != 0; ++i) to[r * kRowPitch + i] = 0;
    }
    clear(to + height * kRowPitch, (kTile - height) * kRowPitch);
    return width;
  }

  // Adds to `sums` [kTile, kTile] the inner products of two panels of views over held tiles [begin, end).
  bool add_views(TilePlace panels, std::int64_t first, std::int64_t begin, std::int64_t end,
                 double* sums) const {
    const std::int64_t row = panels.row * kTile, column = panels.column * kTile;
    const std::int64_t height = smaller(kTile, views_.count() - row);
    const std::int64_t width = smaller(kTile, views_.count() - column);
    const std::int64_t whole = width / Simd<T>::kLanes * Simd<T>::kLanes;
    const std::int64_t padded = round_up(width, Simd<T>::kLanes);
    Scratch scratch((kMultiplyDepth * kTile + kTileSize) * kSize);
    if (!scratch.whole()) return false;
    T* right = scratch.take<T>(kMultiplyDepth * kTile);
    T* product = scratch.take<T>(kTileSize);
    clear(right, kMultiplyDepth * kTile);
    for (std::int64_t at = begin * kTileSize; at < end * kTileSize; at += kMultiplyDepth) {
      const TilePlace tile = place_of(first + at / kTileSize);
      // A tile off the diagonal stands for its mirror image, too.
      const double weight = tile.row == tile.column ? 1 : 2;
      const T* from = held_ + column * pitch_ + at;
      transpose(whole, kMultiplyDepth, from, pitch_, right, kTile);
      for (std::int64_t v = whole; v < width; ++v)
        for (std::int64_t i = 0; i < kMultiplyDepth; ++i) right[i * kTile + v] = from[v * pitch_ + i];
      multiply<T>(height, padded, kMultiplyDepth, {held_ + row * pitch_ + at, pitch_, 1}, {right, kTile},
                  {product, kTile}, false);
      for (std::int64_t i = 0; i < height; ++i)
        for (std::int64_t j = 0; j < width; ++j) sums[i * kTile + j] += weight * product[i * kTile + j];
    }
    return true;
  }

  void add_to_out(TilePlace panels, const double* sums) {
    const std::int64_t count = views_.count();
    for (std::int64_t i = panels.row * kTile; i < smaller((panels.row + 1) * kTile, count); ++i)
      for (std::int64_t j = larger(i, panels.column * kTile); j < smaller((panels.column + 1) * kTile, count);
           ++j)
        out_[i * count + j] += sums[i % kTile * kTile + j % kTile];
  }

  // Elements between rows that are read for a product.
  static constexpr std::int64_t kRowPitch = kMultiplyDepth + kLine;

  const Views<T>& views_;
  double* const out_;         // [K, K]
  const std::int64_t tiles_;  // of a Gram matrix's upper triangle
  std::int64_t pitch_ = 0;
  T* held_ = nullptr;  // [K, pitch]
};

}  // namespace
}  // namespace MMFL_SIMD
}  // namespace mmfl
