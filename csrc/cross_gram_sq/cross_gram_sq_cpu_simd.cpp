// ||X_i^T X_j||_F^2 = <X_i X_i^T, X_j X_j^T>: the sum of squares of the d_i x d_j product, or the inner
// product of two n x n Gram matrices. The cheaper form is chosen from the shape. Neither product is ever
// whole: the first is squared and summed tile by tile; of the second a run of tiles is held for all views at
// a time.
#include <math.h>

#include "common/simd.h"
#include "common/simd_flag.h"
#include "common/simd_multiply.h"
#include "common/simd_pack.h"
#include "common/simd_scratch.h"
#include "common/thread_pool.h"
#include "cross_gram_sq/cross_gram_sq.h"

namespace mmfl {
namespace MMFL_SIMD {
namespace {

constexpr std::int64_t kTile = 64;
constexpr std::int64_t kTileSize = kTile * kTile;
constexpr std::int64_t kHeldTileBytes = std::int64_t{32} << 20;
// Parts of a run of tiles that are reduced side by side, and summed in this order.
constexpr std::int64_t kParts = 16;
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

void clear(double* values, std::int64_t count) {
  std::memset(values, 0, static_cast<std::size_t>(count) * sizeof(double));
}

template <typename T>
class CrossGramSq {
 public:
  explicit CrossGramSq(const CrossGramSqViews& args) : args_(args) {
    for (std::int64_t v = 0; v < args.count; ++v) all_columns_ += args.views[v].columns;
  }

  Status run() {
    Scratch scratch((args_.count * args_.rows + all_columns_) * kSize + (args_.count + 1) * 8);
    if (!scratch.whole()) return Status::kOutOfMemory;
    scale_ = scratch.take<T>(args_.count * args_.rows);
    mean_ = scratch.take<T>(all_columns_);
    first_column_ = scratch.take<std::int64_t>(args_.count + 1);
    first_column_[0] = 0;
    for (std::int64_t v = 0; v < args_.count; ++v)
      first_column_[v + 1] = first_column_[v] + args_.views[v].columns;

    Flag failed;
    if (args_.normalise_rows || args_.mean_columns)
      parallel_for(args_.count, args_.threads, [&](std::int64_t view) {
        if (!measure(view)) failed.raise();
      });
    clear(args_.out, args_.count * args_.count);
    const double n = static_cast<double>(args_.rows), k = static_cast<double>(args_.count);
    const double columns = static_cast<double>(all_columns_);
    const bool by_rows = n * n * columns + k * k * n * n / 2 <= n * columns * columns;
    if (!failed.raised() && !(by_rows ? inner_products() : squared_products())) failed.raise();
    if (failed.raised()) return Status::kOutOfMemory;
    for (std::int64_t i = 0; i < args_.count; ++i)
      for (std::int64_t j = 0; j < i; ++j) args_.out[i * args_.count + j] = args_.out[j * args_.count + i];
    return Status::kOk;
  }

 private:
  static constexpr std::int64_t kSize = sizeof(T);
  static constexpr std::int64_t kLine = 64 / kSize;

  void fetch(std::int64_t view, std::int64_t row, std::int64_t first, std::int64_t count, T* to) const {
    const View& x = args_.views[view];
    const std::int64_t offset = row * x.row_stride * size_of(args_.dtype);
    pack<T>({static_cast<const char*>(x.data) + offset, x.column_stride, args_.dtype}, first, count, to);
  }

  // The same, normalised and centred.
  void prepare(std::int64_t view, std::int64_t row, std::int64_t first, std::int64_t count, T* to) const {
    fetch(view, row, first, count, to);
    const T scale = args_.normalise_rows ? scale_[view * args_.rows + row] : T{1};
    if (args_.mean_columns) {
      const T* mean = mean_ + first_column_[view] + first;
      for (std::int64_t d = 0; d < count; ++d) to[d] = to[d] * scale - mean[d];
    } else if (args_.normalise_rows) {
      for (std::int64_t d = 0; d < count; ++d) to[d] *= scale;
    }
  }

  // Scale of every row and mean of every column, in one read.
  bool measure(std::int64_t view) {
    const std::int64_t columns = args_.views[view].columns;
    Scratch scratch(columns * (kSize + 8));
    if (!scratch.whole()) return false;
    T* row = scratch.take<T>(columns);
    double* total = scratch.take<double>(columns);
    clear(total, columns);
    for (std::int64_t r = 0; r < args_.rows; ++r) {
      fetch(view, r, 0, columns, row);
      double scale = 1;
      if (args_.normalise_rows) {
        const double length = sqrt(sum_of_squares(row, columns));
        scale = length <= kShortest ? 0 : static_cast<T>(1 / length);
        scale_[view * args_.rows + r] = static_cast<T>(scale);
      }
      for (std::int64_t d = 0; d < columns; ++d) total[d] += scale * row[d];
    }
    T* mean = mean_ + first_column_[view];
    for (std::int64_t d = 0; d < columns; ++d)
      mean[d] = static_cast<T>(total[d] / static_cast<double>(args_.rows));
    return true;
  }

  static double sum_of_squares(const T* row, std::int64_t count) {
    constexpr int kChains = 8;
    double chains[kChains] = {};
    std::int64_t d = 0;
    for (; d + kChains <= count; d += kChains)
      for (int i = 0; i < kChains; ++i) chains[i] += static_cast<double>(row[d + i]) * row[d + i];
    for (int i = 0; d < count; ++d, ++i) chains[i] += static_cast<double>(row[d]) * row[d];
    for (int i = 1; i < kChains; ++i) chains[0] += chains[i];
    return chains[0];
  }

  // The n x n form.
  bool inner_products() {
    const std::int64_t blocks = pieces(args_.rows, kTile);
    const std::int64_t tiles = blocks * (blocks + 1) / 2;
    const std::int64_t run = smaller(tiles, larger(1, kHeldTileBytes / (args_.count * kTileSize * kSize)));
    // One more cache line, so that views of a register tile do not compete for a cache set.
    const std::int64_t pitch = run * kTileSize + kLine;
    const std::int64_t panels = pieces(args_.count, kTile);
    const std::int64_t pairs = panels * (panels + 1) / 2;
    const std::int64_t parts = smaller(run, larger(1, kParts / pairs));
    Scratch scratch(args_.count * pitch * kSize + pairs * parts * kTileSize * 8);
    if (!scratch.whole()) return false;
    T* held = scratch.take<T>(args_.count * pitch);
    double* sums = scratch.take<double>(pairs * parts * kTileSize);
    clear(sums, pairs * parts * kTileSize);

    Flag failed;
    for (std::int64_t first = 0; first < tiles && !failed.raised(); first += run) {
      const std::int64_t count = smaller(run, tiles - first);
      const std::int64_t column = place_of(first).column;
      const std::int64_t columns = place_of(first + count - 1).column - column + 1;
      parallel_for(args_.count * columns, args_.threads, [&](std::int64_t task) {
        const std::int64_t view = task / columns;
        if (!fill_tiles(view, column + task % columns, first, count, held + view * pitch)) failed.raise();
      });
      if (failed.raised()) break;
      parallel_for(pairs * parts, args_.threads, [&](std::int64_t task) {
        const std::int64_t part = task % parts;
        const std::int64_t begin = count * part / parts, end = count * (part + 1) / parts;
        if (!add_views(place_of(task / parts), held, pitch, first, begin, end, sums + task * kTileSize))
          failed.raise();
      });
    }
    for (std::int64_t task = 0; task < pairs * parts; ++task) {
      const TilePlace at = place_of(task / parts);
      const double* from = sums + task * kTileSize;
      for (std::int64_t i = at.row * kTile; i < smaller((at.row + 1) * kTile, args_.count); ++i)
        for (std::int64_t j = larger(i, at.column * kTile); j < smaller((at.column + 1) * kTile, args_.count);
             ++j)
          args_.out[i * args_.count + j] += from[i % kTile * kTile + j % kTile];
    }
    return !failed.raised();
  }

  // Tiles of the Gram matrix of one view in block column `column`, those of [first, first + count), to their
  // places in `held`.
  bool fill_tiles(std::int64_t view, std::int64_t column, std::int64_t first, std::int64_t count,
                  T* held) const {
    const std::int64_t columns = args_.views[view].columns;
    const std::int64_t top = column * (column + 1) / 2;
    const std::int64_t begin = larger(first, top) - top;
    const std::int64_t end = smaller(first + count, top + column + 1) - top;
    const std::int64_t left_pitch = kMultiplyDepth + kLine;
    Scratch scratch((columns * kTile + kTile * left_pitch + kTileSize) * kSize + kTileSize * 8);
    if (!scratch.whole()) return false;
    T* right = scratch.take<T>(columns * kTile);
    T* left = scratch.take<T>(kTile * left_pitch);
    T* product = scratch.take<T>(kTileSize);
    double* total = scratch.take<double>(kTileSize);
    pack_rows_across(view, column * kTile, right, left);

    for (std::int64_t block = begin; block < end; ++block) {
      const std::int64_t height = smaller(kTile, args_.rows - block * kTile);
      clear(total, kTileSize);
      for (std::int64_t d = 0; d < columns; d += kMultiplyDepth) {
        const std::int64_t depth = smaller(kMultiplyDepth, columns - d);
        for (std::int64_t r = 0; r < height; ++r)
          prepare(view, block * kTile + r, d, depth, left + r * left_pitch);
        multiply<T>(height, kTile, depth, {left, left_pitch, 1}, {right + d * kTile, kTile}, {product, kTile},
                    false);
        for (std::int64_t i = 0; i < height * kTile; ++i) total[i] += product[i];
      }
      T* to = held + (top + block - first) * kTileSize;
      for (std::int64_t i = 0; i < kTileSize; ++i) to[i] = static_cast<T>(total[i]);
    }
    return true;
  }

  // kTile rows of a view as [columns, kTile], zeros behind the last row. `row` holds kMultiplyDepth elements.
  void pack_rows_across(std::int64_t view, std::int64_t first, T* to, T* row) const {
    const std::int64_t columns = args_.views[view].columns;
    const std::int64_t height = smaller(kTile, args_.rows - first);
    for (std::int64_t r = 0; r < kTile; ++r) {
      for (std::int64_t d = 0; d < columns; d += kMultiplyDepth) {
        const std::int64_t depth = smaller(kMultiplyDepth, columns - d);
        if (r < height) prepare(view, first + r, d, depth, row);
        for (std::int64_t i = 0; i < depth; ++i) to[(d + i) * kTile + r] = r < height ? row[i] : T{0};
      }
    }
  }

  // Adds to `sums` [kTile, kTile] the inner products of two panels of views over held tiles [begin, end).
  bool add_views(TilePlace panels, const T* held, std::int64_t pitch, std::int64_t first, std::int64_t begin,
                 std::int64_t end, double* sums) const {
    const std::int64_t row = panels.row * kTile, column = panels.column * kTile;
    const std::int64_t height = smaller(kTile, args_.count - row);
    const std::int64_t width = smaller(kTile, args_.count - column);
    const std::int64_t padded = round_up(width, Simd<T>::kLanes);
    Scratch scratch((kMultiplyDepth * kTile + kTileSize) * kSize);
    if (!scratch.whole()) return false;
    T* right = scratch.take<T>(kMultiplyDepth * kTile);
    T* product = scratch.take<T>(kTileSize);
    std::memset(right, 0, static_cast<std::size_t>(kMultiplyDepth * kTile * kSize));
    for (std::int64_t at = begin * kTileSize; at < end * kTileSize; at += kMultiplyDepth) {
      const TilePlace tile = place_of(first + at / kTileSize);
      // A tile off the diagonal stands for its mirror image, too.
      const double weight = tile.row == tile.column ? 1 : 2;
      for (std::int64_t v = 0; v < width; ++v) {
        const T* from = held + (column + v) * pitch + at;
        for (std::int64_t i = 0; i < kMultiplyDepth; ++i) right[i * kTile + v] = from[i];
      }
      multiply<T>(height, padded, kMultiplyDepth, {held + row * pitch + at, pitch, 1}, {right, kTile},
                  {product, kTile}, false);
      for (std::int64_t i = 0; i < height; ++i)
        for (std::int64_t j = 0; j < width; ++j) sums[i * kTile + j] += weight * product[i * kTile + j];
    }
    return true;
  }

  // Consecutive views whose columns share a tile; or one view, in as many tiles as it needs.
  struct Party {
    std::int64_t first;
    std::int64_t end;
  };

  // The d x d form.
  bool squared_products() {
    Scratch scratch(args_.count * static_cast<std::int64_t>(sizeof(Party)));
    if (!scratch.whole()) return false;
    Party* parties = scratch.take<Party>(args_.count);
    std::int64_t count = 0;
    for (std::int64_t v = 0; v < args_.count; ++v) {
      if (count > 0 && first_column_[v + 1] - first_column_[parties[count - 1].first] <= kTile) {
        parties[count - 1].end = v + 1;
      } else {
        parties[count++] = {v, v + 1};
      }
    }
    Flag failed;
    parallel_for(count * (count + 1) / 2, args_.threads, [&](std::int64_t task) {
      const TilePlace pair = place_of(task);
      if (!square(parties[pair.row], parties[pair.column])) failed.raise();
    });
    return !failed.raised();
  }

  bool square(Party left, Party right) const {
    Scratch scratch((2 * kMultiplyDepth * kTile + kTileSize) * kSize + kTileSize * 8);
    if (!scratch.whole()) return false;
    T* left_pack = scratch.take<T>(kMultiplyDepth * kTile);
    T* right_pack = scratch.take<T>(kMultiplyDepth * kTile);
    T* product = scratch.take<T>(kTileSize);
    double* total = scratch.take<double>(kTileSize);
    for (std::int64_t j = first_column_[right.first]; j < first_column_[right.end]; j += kTile) {
      const std::int64_t width = smaller(kTile, first_column_[right.end] - j);
      const std::int64_t padded = round_up(width, Simd<T>::kLanes);
      for (std::int64_t i = first_column_[left.first]; i < first_column_[left.end]; i += kTile) {
        const std::int64_t height = smaller(kTile, first_column_[left.end] - i);
        clear(total, kTileSize);
        for (std::int64_t r = 0; r < args_.rows; r += kMultiplyDepth) {
          const std::int64_t depth = smaller(kMultiplyDepth, args_.rows - r);
          pack_columns(left, i, height, r, depth, left_pack);
          pack_columns(right, j, width, r, depth, right_pack);
          multiply<T>(height, padded, depth, {left_pack, 1, kTile}, {right_pack, kTile}, {product, kTile},
                      false);
          for (std::int64_t h = 0; h < height; ++h)
            for (std::int64_t w = 0; w < width; ++w) total[h * kTile + w] += product[h * kTile + w];
        }
        add_squares(left, i, height, right, j, width, total);
      }
    }
    return true;
  }

  // Columns [first, first + width) of all views' columns, which lie in `party`, as [depth, kTile].
  void pack_columns(Party party, std::int64_t first, std::int64_t width, std::int64_t row, std::int64_t depth,
                    T* to) const {
    for (std::int64_t r = 0; r < depth; ++r) {
      for (std::int64_t v = party.first; v < party.end; ++v) {
        const std::int64_t begin = larger(first, first_column_[v]);
        const std::int64_t end = smaller(first + width, first_column_[v + 1]);
        if (begin < end)
          prepare(v, row + r, begin - first_column_[v], end - begin, to + r * kTile + begin - first);
      }
      for (std::int64_t w = width; w < kTile; ++w) to[r * kTile + w] = 0;
    }
  }

  void add_squares(Party left, std::int64_t i, std::int64_t height, Party right, std::int64_t j,
                   std::int64_t width, const double* product) const {
    for (std::int64_t a = left.first; a < left.end; ++a) {
      for (std::int64_t b = larger(a, right.first); b < right.end; ++b) {
        double sum = 0;
        for (std::int64_t h = larger(i, first_column_[a]); h < smaller(i + height, first_column_[a + 1]); ++h)
          for (std::int64_t w = larger(j, first_column_[b]); w < smaller(j + width, first_column_[b + 1]);
               ++w) {
            const double value = product[(h - i) * kTile + w - j];
            sum += value * value;
          }
        args_.out[a * args_.count + b] += sum;
      }
    }
  }

  const CrossGramSqViews& args_;
  std::int64_t all_columns_ = 0;
  T* scale_ = nullptr;                    // [K, n]
  T* mean_ = nullptr;                     // [all columns]
  std::int64_t* first_column_ = nullptr;  // [K + 1] of every view among all columns
};

}  // namespace

Status cross_gram_sq_in_float(const CrossGramSqViews& args) { return CrossGramSq<float>(args).run(); }
Status cross_gram_sq_in_double(const CrossGramSqViews& args) { return CrossGramSq<double>(args).run(); }

}  // namespace MMFL_SIMD
}  // namespace mmfl
