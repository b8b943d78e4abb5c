// A thread takes a few neighbouring columns through all rows. Every column's arithmetic is the same whatever
// the tile, so the cut is free of consequences for the result.
#pragma once

#include "common/block_sum.cuh"
#include "common/row_chunk.cuh"
#include "mix/mix_plan.h"

namespace mmfl {
namespace device {

// Rows that are added in the compute type; sums of such groups are added in double.
constexpr int kMixPanel = 64;
// Rows whose loads are in flight together.
constexpr int kMixGroup = 8;

using MixBlockSum = BlockSum<kMixThreads>;

// The weights of one panel for the outputs of a block.
template <typename T, int kOutputs>
struct MixWeights {
  T of[kMixPanel][kOutputs];
  T offset[kMixPanel];
  bool read[kMixPanel];  // any weight is not 0
};

// Which rows take part, and how many. One block.
MMFL_DEVICE void mix_members(const MixDevice& args, MixBlockSum& shared) {
  double count = 0;
  for (std::int64_t k = thread(); k < args.rows; k += kMixThreads) {
    bool any = false;
    for (std::int64_t r = 0; r < args.out_rows && !any; ++r) any = args.matrix[r * args.rows + k] != 0;
    args.members[k] = any ? 1 : 0;
    count += any ? 1 : 0;
  }
  count = sum_over_block(count, shared);
  if (thread() == 0) args.members[args.rows] = count;
}

// The mean of the rows that take part.
template <typename T>
MMFL_DEVICE void mix_centre(const MixDevice& args, const Span* spans, std::int64_t column, std::int64_t width,
                            T (&centre)[kColumns<T>]) {
  double sums[kColumns<T>] = {};
  for (std::int64_t from = 0; from < args.rows; from += kMixGroup) {
    T values[kMixGroup][kColumns<T>];
    Packing packing[kMixGroup];
#pragma unroll
    for (int i = 0; i < kMixGroup; ++i) {
      const std::int64_t k = from + i;
      const bool member = k < args.rows && args.members[k] != 0;
      packing[i] = load_row_packed(spans[member ? k : 0], column, member ? width : 0, values[i]);
    }
#pragma unroll
    for (int i = 0; i < kMixGroup; ++i) {
      widen(packing[i], values[i]);
#pragma unroll
      for (int c = 0; c < kColumns<T>; ++c) sums[c] += static_cast<double>(values[i][c]);
    }
  }
  const double members = args.members[args.rows];
#pragma unroll
  for (int c = 0; c < kColumns<T>; ++c) centre[c] = members > 0 ? static_cast<T>(sums[c] / members) : T(0);
}

// kOutputs of the outputs on one tile of columns.
template <typename T, int kOutputs>
MMFL_DEVICE void mix_tile(const MixDevice& args, MixWeights<T, kOutputs>& shared) {
  const std::int64_t* tiles = sizeof(T) == 8 ? args.double_tiles : args.float_tiles;
  // Blocks that read the same columns are neighbours.
  const std::int64_t parts = (args.out_rows + kOutputs - 1) / kOutputs;
  const std::int64_t tile = block_x() / parts, first = block_x() % parts * kOutputs;
  const std::int64_t segment = segment_of(tiles, args.segments, tile);
  const std::int64_t width = args.widths[segment];
  const std::int64_t column = ((tile - tiles[segment]) * kMixThreads + thread()) * kColumns<T>;
  const Span* spans = args.spans + segment * args.rows;

  T centre[kColumns<T>] = {};
  if (args.members != nullptr) mix_centre(args, spans, column, width, centre);
  double totals[kOutputs][kColumns<T>] = {};
  for (std::int64_t from = 0; from < args.rows; from += kMixPanel) {
    const std::int64_t left = args.rows - from;
    const int count = left < kMixPanel ? static_cast<int>(left) : kMixPanel;
    // After all have read the weights of the panel before.
    sync_block();
    if (thread() < kMixPanel) {
      bool read = false;
#pragma unroll
      for (int r = 0; r < kOutputs; ++r) {
        const bool inside = thread() < count && first + r < args.out_rows;
        const double weight = inside ? args.matrix[(first + r) * args.rows + from + thread()] : 0;
        shared.of[thread()][r] = static_cast<T>(weight);
        read = read || weight != 0;
      }
      shared.read[thread()] = read;
      shared.offset[thread()] = args.row_offset != nullptr && thread() < count
                                    ? static_cast<T>(args.row_offset[from + thread()])
                                    : T(0);
    }
    sync_block();
    T sums[kOutputs][kColumns<T>] = {};
    for (int k = 0; k < count; k += kMixGroup) {
      T values[kMixGroup][kColumns<T>];
      Packing packing[kMixGroup];
#pragma unroll
      for (int i = 0; i < kMixGroup; ++i)
        if (shared.read[k + i]) packing[i] = load_row_packed(spans[from + k + i], column, width, values[i]);
#pragma unroll
      for (int i = 0; i < kMixGroup; ++i) {
        if (!shared.read[k + i]) continue;
        widen(packing[i], values[i]);
        T probe = 0;
#pragma unroll
        for (int c = 0; c < kColumns<T>; ++c) {
          values[i][c] -= centre[c] + shared.offset[k + i];
          probe += values[i][c] * T(0);
        }
#pragma unroll
        for (int r = 0; r < kOutputs; ++r) {
          const T weight = shared.of[k + i][r];
          // A weight of 0 leaves a non-finite value unread.
          if (probe != 0 && weight == 0) continue;
#pragma unroll
          for (int c = 0; c < kColumns<T>; ++c) sums[r][c] += weight * values[i][c];
        }
      }
    }
#pragma unroll
    for (int r = 0; r < kOutputs; ++r)
#pragma unroll
      for (int c = 0; c < kColumns<T>; ++c) totals[r][c] += static_cast<double>(sums[r][c]);
  }
#pragma unroll
  for (int r = 0; r < kOutputs; ++r) {
    if (first + r >= args.out_rows) continue;
    T values[kColumns<T>];
#pragma unroll
    for (int c = 0; c < kColumns<T>; ++c) values[c] = static_cast<T>(totals[r][c]);
    const RowBlock& output = args.outputs[segment];
    store_row(const_cast<void*>(output.data), output.dtype, (first + r) * output.row_stride, column, width,
              values);
  }
}

}  // namespace device
}  // namespace mmfl
