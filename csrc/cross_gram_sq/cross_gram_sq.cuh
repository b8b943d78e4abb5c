// ||X_i^T X_j||_F^2 = <X_i X_i^T, X_j X_j^T>. By columns, tiles of the d x d products are squared and summed
// as they leave the registers. By rows, tiles of the n x n Gram matrices are held for all views, and gram
// forms their inner products. README.md beside this file tells the rest.
#pragma once

#include <math.h>

#include "common/block_sum.cuh"
#include "common/slab.cuh"
#include "cross_gram_sq/cross_gram_sq_plan.h"

namespace mmfl {
namespace device {

static_assert(kCrossThreads == kSlabThreads, "a block stages its slabs with all threads");

constexpr int kCrossWarps = kCrossThreads / kWarp;
constexpr int kCrossPanels = kCrossTile / 8;
constexpr double kShortestRow = 1e-12;
// Terms that are added in float before they go to a sum in double.
constexpr int kCrossFlush = 2048;

MMFL_DEVICE Span span_of(const CrossGramSqDevice& call, const View& view, std::int64_t row,
                         std::int64_t column, std::int64_t stride) {
  const std::int64_t size = call.dtype == DType::kFloat64 ? 8 : call.dtype == DType::kFloat32 ? 4 : 2;
  const std::int64_t offset = (row * view.row_stride + column * view.column_stride) * size;
  return {static_cast<const char*>(view.data) + offset, stride, call.dtype};
}

// What one row per warp is scaled with.
template <typename T>
MMFL_DEVICE void cross_gram_sq_scale(const CrossGramSqDevice& call) {
  const std::int64_t number = block_x() * kCrossWarps + thread() / kWarp;
  if (number >= call.batch * call.count * call.rows) return;
  const View view = call.views[number / call.rows];
  const Span row = span_of(call, view, number % call.rows, 0, view.column_stride);
  double squares = 0;
  for (std::int64_t d = thread() % kWarp * kColumns<T>; d < view.columns; d += kWarp * kColumns<T>) {
    T values[kColumns<T>];
    load_row(row, d, view.columns, values);
#pragma unroll
    for (int c = 0; c < kColumns<T>; ++c)
      squares += static_cast<double>(values[c]) * static_cast<double>(values[c]);
  }
  for (int mask = 1; mask < kWarp; mask *= 2) squares += shuffle_xor(squares, mask);
  const double length = sqrt(squares);
  if (thread() % kWarp == 0)
    static_cast<T*>(call.scale)[number] = length <= kShortestRow ? T(0) : static_cast<T>(1 / length);
}

struct ColumnSums {
  double of[kCrossWarps][kWarp];
};

// The means of up to 32 columns per block: half a panel, one column per lane.
template <typename T>
MMFL_DEVICE void cross_gram_sq_mean(const CrossGramSqDevice& call, ColumnSums& shared) {
  const std::int64_t halves = 2 * call.panels;
  const std::int64_t entry = block_x() / halves, half = block_x() % halves;
  const std::int64_t number = segment_of(call.first_panel, call.count, half / 2);
  const View view = call.views[entry * call.count + number];
  const int lane = thread() % kWarp, warp = thread() / kWarp;
  const std::int64_t column = (half - 2 * call.first_panel[number]) * kWarp + lane;
  double sum = 0;
  if (column < view.columns) {
    const Span span = span_of(call, view, 0, column, view.row_stride);
    const T* scale = static_cast<const T*>(call.scale);
    if (scale != nullptr) scale += (entry * call.count + number) * call.rows;
    for (std::int64_t r = warp; r < call.rows; r += kCrossWarps)
      sum += static_cast<double>(load_element<T>(span, r)) *
             (scale != nullptr ? static_cast<double>(scale[r]) : 1.0);
  }
  shared.of[warp][lane] = sum;
  sync_block();
  if (warp > 0 || column >= view.columns) return;
  for (int w = 1; w < kCrossWarps; ++w) sum += shared.of[w][lane];
  const std::int64_t all_columns = call.first_column[call.count];
  static_cast<T*>(call.mean)[entry * all_columns + call.first_column[number] + column] =
      static_cast<T>(sum / static_cast<double>(call.rows));
}

// The upper triangle column by column: 0 = (0, 0), 1 = (0, 1), 2 = (1, 1), ...
struct CrossPlace {
  std::int64_t row;
  std::int64_t column;
};

MMFL_DEVICE CrossPlace cross_place(std::int64_t tile) {
  auto column = static_cast<std::int64_t>((sqrt(8.0 * static_cast<double>(tile) + 1.0) - 1.0) / 2.0);
  while (column * (column + 1) / 2 > tile) --column;
  while ((column + 1) * (column + 2) / 2 <= tile) ++column;
  return {tile - column * (column + 1) / 2, column};
}

// kCrossTile rows of a view, or so many of its columns.
template <typename T>
struct CrossOperand {
  View view;
  const T* scale;  // of its rows, or null
  const T* mean;   // of its columns, or null
  std::int64_t first;
  std::int64_t left;  // rows or columns from `first` on
};

template <typename T>
MMFL_DEVICE CrossOperand<T> cross_operand(const CrossGramSqDevice& call, std::int64_t entry,
                                          std::int64_t number, std::int64_t first, bool by_rows) {
  const std::int64_t place = entry * call.count + number, all_columns = call.first_column[call.count];
  CrossOperand<T> operand;
  operand.view = call.views[place];
  operand.scale = call.scale != nullptr ? static_cast<const T*>(call.scale) + place * call.rows : nullptr;
  operand.mean = call.mean != nullptr
                     ? static_cast<const T*>(call.mean) + entry * all_columns + call.first_column[number]
                     : nullptr;
  operand.first = first;
  operand.left = (by_rows ? call.rows : operand.view.columns) - first;
  return operand;
}

// One slab of an operand on its way to shared memory, normalised and centred.
template <typename T, bool kByRows>
struct CrossLoad {
  static constexpr int kParts = 8 * kCrossTile / kCrossThreads;
  Chunk16 chunks[kParts];

  // By rows, eight lanes read one row; by columns, neighbours read neighbouring columns.
  static MMFL_DEVICE int row(int part) {
    return kByRows ? thread() / 8 + part * (kCrossThreads / 8) : thread() % kCrossTile;
  }
  static MMFL_DEVICE int chunk(int part) {
    return kByRows ? thread() % 8 : thread() / kCrossTile + part * (kCrossThreads / kCrossTile);
  }

  MMFL_DEVICE void load(const CrossGramSqDevice& call, const CrossOperand<T>& from, std::int64_t depth) {
    const View& view = from.view;
    const std::int64_t width = kByRows ? view.columns : call.rows;
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const std::int64_t own = from.first + row(part), at = depth + chunk(part) * kColumns<T>;
      const bool inside = row(part) < from.left;
      const Span span = kByRows ? span_of(call, view, own, 0, view.column_stride)
                                : span_of(call, view, 0, own, view.row_stride);
      T values[kColumns<T>];
      load_row(span, at, inside ? width : 0, values);
#pragma unroll
      for (int c = 0; c < kColumns<T>; ++c) {
        if (!inside || at + c >= width) continue;
        if (from.scale != nullptr) values[c] *= from.scale[kByRows ? own : at + c];
        if (from.mean != nullptr) values[c] -= from.mean[kByRows ? at + c : own];
        if (!is_finite(values[c])) values[c] = quiet_nan<T>();
      }
      chunks[part] = packed(values);
    }
  }

  MMFL_DEVICE void write(Slab<T, kCrossTile>& slab) const {
#pragma unroll
    for (int part = 0; part < kParts; ++part) slab.write(row(part), chunk(part), chunks[part]);
  }
};

// Each lane's elements of a tile, which only it touches. Beside the products in flight they do not fit its
// registers.
struct CrossTotals {
  double of[4 * kCrossPanels][kCrossThreads];

  MMFL_DEVICE double& at(int half, int panel, int c) {
    return of[(half * kCrossPanels + panel) * 2 + c][thread()];
  }

  // visit(row, column, total)
  template <typename Visit>
  MMFL_DEVICE void each(Visit visit) {
    const int lane = thread() % kWarp, own = 16 * (thread() / kWarp);
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int n = 0; n < kCrossPanels; ++n)
#pragma unroll
        for (int c = 0; c < 2; ++c)
          visit(own + 8 * half + lane / 4, 8 * n + lane % 4 * 2 + c, at(half, n, c));
  }
};

template <typename T>
struct CrossShared {
  Slab<T, kCrossTile> left[2];
  Slab<T, kCrossTile> right[2];
  CrossTotals totals;
  BlockSum<kCrossThreads> sum;
  CrossOperand<T> operands[2];
};

struct CrossJoinShared {
  CrossTotals totals;
  BlockSum<kCrossThreads> sum;
};

// Where product number `product` of a launch belongs.
template <bool kByRows>
struct CrossProduct {
  std::int64_t entry;
  std::int64_t view;  // by rows
  std::int64_t tile;  // of the run by rows, else of all
  CrossPlace place;

  MMFL_DEVICE CrossProduct(const CrossGramSqDevice& call, std::int64_t product)
      : entry(kByRows ? call.entry : product / call.tiles),
        view(kByRows ? product / call.run : 0),
        tile(kByRows ? product % call.run : product % call.tiles),
        place(cross_place(kByRows ? call.first_tile + tile : tile)) {}

  // The last run may be shorter.
  MMFL_DEVICE bool exists(const CrossGramSqDevice& call) const {
    return !kByRows || call.first_tile + tile < call.tiles;
  }
};

// Leaves a whole tile in its place: scaled for its mirror image where it stands for that, or as its sum of
// squares.
template <typename T, bool kByRows>
MMFL_DEVICE void finish_tile(const CrossGramSqDevice& call, const CrossProduct<kByRows>& product,
                             CrossTotals& totals, BlockSum<kCrossThreads>& shared) {
  if (kByRows) {
    const double weight = product.place.row == product.place.column ? 1.0 : 1.4142135623730951;
    T* to = static_cast<T*>(call.held) + (product.view * call.run + product.tile) * kCrossTileSize;
    totals.each([&](int row, int column, double total) {
      to[row * kCrossTile + column] = static_cast<T>(weight * total);
    });
    return;
  }
  double sum = 0;
  totals.each([&](int, int, double total) { sum += total * total; });
  sum = sum_over_block(sum, shared);
  if (thread() == 0) call.tile_sums[product.entry * call.tiles + product.tile] = sum;
}

// One split of one tile per block.
template <typename T, bool kByRows, bool kTf32>
MMFL_DEVICE void cross_gram_sq_tile(const CrossGramSqDevice& call, CrossShared<T>& shared) {
  const std::int64_t split = block_x() % call.splits, number = block_x() / call.splits;
  const CrossProduct<kByRows> product(call, number);
  if (!product.exists(call)) return;
  std::int64_t left_view = product.view, right_view = product.view;
  std::int64_t left_first = product.place.row * kCrossTile, right_first = product.place.column * kCrossTile;
  if (!kByRows) {
    left_view = segment_of(call.first_panel, call.count, product.place.row);
    right_view = segment_of(call.first_panel, call.count, product.place.column);
    left_first -= call.first_panel[left_view] * kCrossTile;
    right_first -= call.first_panel[right_view] * kCrossTile;
  }
  if (thread() == 0) {
    shared.operands[0] = cross_operand<T>(call, product.entry, left_view, left_first, kByRows);
    shared.operands[1] = cross_operand<T>(call, product.entry, right_view, right_first, kByRows);
  }
  sync_block();
  const CrossOperand<T>&left = shared.operands[0], &right = shared.operands[1];
  const std::int64_t depth = kByRows ? left.view.columns : call.rows;
  const std::int64_t slabs = (depth + kSlabColumns<T> - 1) / kSlabColumns<T>;
  const std::int64_t first = slabs * split / call.splits, end = slabs * (split + 1) / call.splits;
  const int own = 16 * (thread() / kWarp);

  CrossTotals& totals = shared.totals;
  Scores<T, kCrossPanels, kTf32> scores;
  scores.clear();
  const auto flush = [&](bool start) {
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int n = 0; n < kCrossPanels; ++n)
#pragma unroll
        for (int c = 0; c < 2; ++c)
          totals.at(half, n, c) =
              (start ? 0 : totals.at(half, n, c)) + static_cast<double>(scores.at(half, n, c));
    scores.clear();
  };
  // Sums in double stay where they are until the end.
  constexpr bool kFlushes = sizeof(T) == 4;
  if (kFlushes || first == end) flush(true);
  CrossLoad<T, kByRows> left_load, right_load;
  if (first < end) {
    left_load.load(call, left, first * kSlabColumns<T>);
    right_load.load(call, right, first * kSlabColumns<T>);
    left_load.write(shared.left[0]);
    right_load.write(shared.right[0]);
  }
  sync_block();
  int buffer = 0, unflushed = 0;
  for (std::int64_t slab = first; slab < end; ++slab) {
    const bool more = slab + 1 < end;
    if (more) {
      left_load.load(call, left, (slab + 1) * kSlabColumns<T>);
      right_load.load(call, right, (slab + 1) * kSlabColumns<T>);
    }
    // Rows of the right side that do not exist are zeros: a test for each panel would cost more than they do.
    if (own < left.left) scores.add(shared.left[buffer], own, shared.right[buffer], kCrossPanels);
    buffer ^= 1;
    if (more) {
      left_load.write(shared.left[buffer]);
      right_load.write(shared.right[buffer]);
    }
    sync_block();
    if (more && (!kFlushes || ++unflushed * kSlabColumns<T> < kCrossFlush)) continue;
    flush(!kFlushes);
    unflushed = 0;
  }
  if (call.splits == 1) {
    finish_tile<T, kByRows>(call, product, totals, shared.sum);
  } else {
    double* to = call.partial + (number * call.splits + split) * kCrossTileSize + thread();
    int place = 0;
    totals.each([&](int, int, double total) { to[kCrossThreads * place++] = total; });
  }
}

// Adds the splits of one tile per block up.
template <typename T, bool kByRows>
MMFL_DEVICE void cross_gram_sq_join(const CrossGramSqDevice& call, CrossJoinShared& shared) {
  const CrossProduct<kByRows> product(call, block_x());
  if (!product.exists(call)) return;
  const double* from = call.partial + block_x() * call.splits * kCrossTileSize + thread();
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int n = 0; n < kCrossPanels; ++n)
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const double* element = from + kCrossThreads * ((half * kCrossPanels + n) * 2 + c);
        double sum = 0;
        for (std::int64_t s = 0; s < call.splits; ++s) sum += element[s * kCrossTileSize];
        shared.totals.at(half, n, c) = sum;
      }
  finish_tile<T, kByRows>(call, product, shared.totals, shared.sum);
}

// One entry of the result per warp, from the sums of squares of its tiles.
MMFL_DEVICE void cross_gram_sq_pair(const CrossGramSqDevice& call) {
  const std::int64_t number = block_x() * kCrossWarps + thread() / kWarp;
  const std::int64_t entries = call.count * call.count;
  if (number >= call.batch * entries) return;
  const std::int64_t i = number % entries / call.count, j = number % entries % call.count;
  const std::int64_t upper = i < j ? i : j, lower = i < j ? j : i;
  const std::int64_t first_row = call.first_panel[upper], first_column = call.first_panel[lower];
  const std::int64_t height = call.first_panel[upper + 1] - first_row;
  const std::int64_t width = call.first_panel[lower + 1] - first_column;
  const double* sums = call.tile_sums + number / entries * call.tiles;
  double sum = 0;
  for (std::int64_t at = thread() % kWarp; at < height * width; at += kWarp) {
    const std::int64_t p = first_row + at / width, q = first_column + at % width;
    sum += p <= q ? sums[q * (q + 1) / 2 + p] : sums[p * (p + 1) / 2 + q];
  }
  for (int mask = 1; mask < kWarp; mask *= 2) sum += shuffle_xor(sum, mask);
  if (thread() % kWarp == 0) call.out[number] = sum;
}

// The sum over the runs, one entry per thread.
MMFL_DEVICE void cross_gram_sq_add(const CrossGramSqDevice& call) {
  const std::int64_t entries = call.count * call.count, at = block_x() * kCrossThreads + thread();
  if (at >= entries) return;
  double sum = 0;
  for (std::int64_t r = 0; r < call.runs; ++r) sum += call.run_sums[r * entries + at];
  call.out[call.entry * entries + at] = sum;
}

}  // namespace device
}  // namespace mmfl
