// The matrices of cross_gram_sq as both of its forms read them. Included only by cross_gram_sq_cpu_simd.cpp,
// see common/simd.h.
#pragma once

#include <math.h>

#include "common/simd_dot.h"
#include "common/simd_flag.h"
#include "common/simd_multiply.h"
#include "common/simd_pack.h"
#include "common/simd_scratch.h"
#include "common/thread_pool.h"
#include "cross_gram_sq/cross_gram_sq.h"

namespace mmfl {
namespace MMFL_SIMD {
namespace {

// Products are formed in square tiles.
constexpr std::int64_t kTile = 64;
constexpr std::int64_t kTileSize = kTile * kTile;
constexpr double kShortest = 1e-12;

std::int64_t smaller(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
std::int64_t larger(std::int64_t a, std::int64_t b) { return a > b ? a : b; }
std::int64_t pieces(std::int64_t n, std::int64_t size) { return (n + size - 1) / size; }

// Tile t of the upper triangle, column by column: 0 = (0, 0), 1 = (0, 1), 2 = (1, 1), ...
struct TilePlace {
  std::int64_t row;
  std::int64_t column;
};

TilePlace place_of(std::int64_t tile) {
  std::int64_t column = static_cast<std::int64_t>((sqrt(8.0 * static_cast<double>(tile) + 1.0) - 1.0) / 2.0);
  while (column * (column + 1) / 2 > tile) --column;
  while ((column + 1) * (column + 2) / 2 <= tile) ++column;
  return {tile - column * (column + 1) / 2, column};
}

template <typename T>
void clear(T* values, std::int64_t count) {
  std::memset(values, 0, static_cast<std::size_t>(count) * sizeof(T));
}

// K views; elements are normalised and centred while they are read.
template <typename T>
class Views {
 public:
  explicit Views(const CrossGramSqViews& args)
      : args_(args),
        all_columns_(count_columns(args)),
        scratch_((args.count * args.rows + all_columns_) * kSize + (args.count + 1) * 8),
        scale_(scratch_.template take<T>(args.count * args.rows)),
        mean_(scratch_.template take<T>(all_columns_)),
        first_column_(scratch_.template take<std::int64_t>(args.count + 1)) {}

  // Scales and means, and the columns' numbers; before anything else. False if there was no memory.
  bool measure() {
    if (!scratch_.whole()) return false;
    first_column_[0] = 0;
    for (std::int64_t v = 0; v < args_.count; ++v) first_column_[v + 1] = first_column_[v] + columns(v);
    if (!args_.normalise_rows && !args_.mean_columns) return true;
    Flag failed;
    parallel_for(args_.count, args_.threads, [&](std::int64_t view) {
      if (!measure(view)) failed.raise();
    });
    return !failed.raised();
  }

  std::int64_t count() const { return args_.count; }
  std::int64_t rows() const { return args_.rows; }
  std::int64_t columns(std::int64_t view) const { return args_.views[view].columns; }
  std::int64_t all_columns() const { return all_columns_; }
  // Of a view among the columns of all views; for `count()` their number.
  std::int64_t first_column(std::int64_t view) const { return first_column_[view]; }
  int threads() const { return args_.threads; }

  // Elements [first, first + count) of a row.
  void read(std::int64_t view, std::int64_t row, std::int64_t first, std::int64_t count, T* to) const {
    const T* from = fetch(view, row, first, count, to);
    const T scale = args_.normalise_rows ? scale_[view * args_.rows + row] : T{1};
    const T* mean = mean_ + first_column_[view] + first;
    // `from` is `to` or apart from it.
    if (args_.mean_columns) {
#pragma GCC ivdep
      for (std::int64_t d = 0; d < count; ++d) to[d] = from[d] * scale - mean[d];
    } else {
#pragma GCC ivdep
      for (std::int64_t d = 0; d < count; ++d) to[d] = from[d] * scale;
    }
  }

 private:
  static constexpr std::int64_t kSize = sizeof(T);

  static std::int64_t count_columns(const CrossGramSqViews& args) {
    std::int64_t columns = 0;
    for (std::int64_t v = 0; v < args.count; ++v) columns += args.views[v].columns;
    return columns;
  }

  // The elements as they are: where they lie, or converted to `spare`.
  const T* fetch(std::int64_t view, std::int64_t row, std::int64_t first, std::int64_t count,
                 T* spare) const {
    const View& x = args_.views[view];
    const std::int64_t offset = row * x.row_stride * size_of(args_.dtype);
    const Span span{static_cast<const char*>(x.data) + offset, x.column_stride, args_.dtype};
    if (const T* plain = as_plain<T>(span)) return plain + first;
    pack<T>(span, first, count, spare);
    return spare;
  }

  // Scale of every row and mean of every column, in one read.
  bool measure(std::int64_t view) {
    const std::int64_t columns = args_.views[view].columns;
    Scratch scratch(columns * (kSize + 8));
    if (!scratch.whole()) return false;
    T* spare = scratch.take<T>(columns);
    double* total = scratch.take<double>(columns);
    clear(total, columns);
    for (std::int64_t r = 0; r < args_.rows; ++r) {
      const T* row = fetch(view, r, 0, columns, spare);
      T scale = 1;
      if (args_.normalise_rows) scale = scale_[view * args_.rows + r] = inverse_length(row, columns);
      for (std::int64_t d = 0; d < columns; ++d) total[d] += static_cast<double>(scale) * row[d];
    }
    T* mean = mean_ + first_column_[view];
    for (std::int64_t d = 0; d < columns; ++d)
      mean[d] = static_cast<T>(total[d] / static_cast<double>(args_.rows));
    return true;
  }

  static T inverse_length(const T* row, std::int64_t count) {
    const T squares = dot(row, row, count);
    const double length = sqrt(in_safe_range(squares) ? squares : wide_square(row, count));
    return length <= kShortest ? T{0} : static_cast<T>(1 / length);
  }

  const CrossGramSqViews& args_;
  const std::int64_t all_columns_;
  Scratch scratch_;
  T* const scale_;                    // [K, n]
  T* const mean_;                     // [all columns]
  std::int64_t* const first_column_;  // [K + 1]
};

}  // namespace
}  // namespace MMFL_SIMD
}  // namespace mmfl
