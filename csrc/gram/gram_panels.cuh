// Products of more rows than a warp holds, in float: the warps of a block shift and split each row once, into
// shared memory in the layout of the matrix instructions, and multiply what all of them wrote there.
#pragma once

#include "gram/gram.cuh"

namespace mmfl {
namespace device {

// One step of columns of the rows of a left and of a right group: two steps of the matrix instructions, in an
// order of their own, a lane's first two columns and its last two. Where a matrix instruction wants its words
// apart from one another, the compiler would move them in front of every single one.
struct PanelSlab {
  static constexpr int kPanels = kPanelGroup / 8;
  // In the place of a pair of panels their high parts, then their low ones, as a left operand has them.
  Chunk16 left[2][kPanels][kWarp];
  // Both high parts of a row, then its low ones.
  Chunk16 right[2][kPanels][kWarp];
};

// A block multiplies the rows of a group with each other (kDiagonal) or with those of a later group. 96 KiB,
// for a chip of compute capability 8.6 has no more.
template <bool kDiagonal>
struct PanelShared {
  static constexpr int kHeld = (kDiagonal ? 1 : 2) * PanelSlab::kPanels / kGramWarps;  // panels of one warp
  static constexpr int kStages = kDiagonal ? 4 : 2;
  // One is written while the other is multiplied.
  PanelSlab slabs[2];
  // What a lane copies it reads itself. Elements of 16 bits take half a chunk.
  Chunk16 stages[kStages][kGramWarps][kHeld][kWarp];
};

// The rows that one warp shifts and splits.
template <int kHeld>
struct PanelRows {
  using Stage = Chunk16[kHeld][kWarp];
  using Values = float[1][kHeld][kColumns<float>];

  LaneRows<float, kHeld, 1> lanes;

  MMFL_DEVICE PanelRows(const GramDevice& args, std::int64_t first) : lanes(args, first) {}

  // Whether steps that lie in the segment with all their columns can be copied.
  MMFL_DEVICE bool copied() const {
    constexpr unsigned kAll = (1u << kHeld) - 1;
    return !any_lane((lanes.kinds & kAll) != kAll);
  }

  MMFL_DEVICE void copy(std::int64_t column, Stage& stage) const {
    const std::int64_t at = lanes.column_of(0, column);
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      Chunk16* to = &stage[i][thread() % kWarp];
      const void* data = lanes.spans[8 * i].data;
      if (lanes.is(8 + i)) {
        copy_8_bytes(to, static_cast<const std::uint16_t*>(data) + at);
      } else {
        copy_16_bytes(to, static_cast<const float*>(data) + at);
      }
    }
  }

  MMFL_DEVICE void take(const Stage& stage, Values& values) const {
    LaneRows<float, kHeld, 1>::take(stage, values);
#pragma unroll
    for (int i = 0; i < kHeld; ++i)
      if (lanes.is(8 + i)) widen(lanes.is(16 + i), values[0][i]);
  }

  // Splits the factors of one step for the warps that will multiply them.
  template <bool kTf32>
  static MMFL_DEVICE void write(const Values& values, int first, bool left, bool right, PanelSlab& slab) {
    using Sums = Products<float, 2, 1, false, kTf32>;
    const int lane = thread() % kWarp;
#pragma unroll
    for (int i = 0; i < kHeld; i += 2)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        Chunk16 high, low;
#pragma unroll
        for (int w = 0; w < 4; ++w)
          Sums::split(values[0][i + w % 2][2 * half + w / 2], high.words[w], low.words[w]);
        if (left) {
          store_16_bytes(&slab.left[half][first + i][lane], high);
          store_16_bytes(&slab.left[half][first + i + 1][lane], low);
        }
        if (right) {
#pragma unroll
          for (int k = 0; k < 2; ++k)
            store_16_bytes(&slab.right[half][first + i + k][lane],
                           {{high.words[k], high.words[2 + k], low.words[k], low.words[2 + k]}});
        }
      }
  }
};

// The products a warp adds up, in tiles of 16 x 8.
template <int kTiles, bool kTf32>
struct TileSums {
  float of[kTiles][4];

  MMFL_DEVICE void clear() {
#pragma unroll
    for (int t = 0; t < kTiles; ++t)
#pragma unroll
      for (int c = 0; c < 4; ++c) of[t][c] = 0;
  }

  // 8 kRows rows, of which the first `live` are wanted, with 8 kOthers others, or with themselves: then on
  // and above the diagonal of tiles alone.
  template <bool kTriangle, int kRows, int kOthers>
  MMFL_DEVICE void add(const Chunk16 (*rows)[kWarp], int live, const Chunk16 (*others)[kWarp]) {
    const int lane = thread() % kWarp;
    Chunk16 right[kOthers];
#pragma unroll
    for (int n = 0; n < kOthers; ++n) right[n] = read_16_bytes(&others[n][lane]);
    int tile = 0;
#pragma unroll
    for (int m = 0; m < kRows / 2; ++m) {
      // The branch keeps the machine's compiler, too, from having the products of all rows on their way at
      // once, for which there are no registers.
      if (16 * m >= live) return;
      keep_order();
      const Chunk16 high = read_16_bytes(&rows[2 * m][lane]), low = read_16_bytes(&rows[2 * m + 1][lane]);
#pragma unroll
      for (int n = kTriangle ? 2 * m : 0; n < kOthers; ++n) {
        const std::uint32_t other_high[2] = {right[n].words[0], right[n].words[1]};
        const std::uint32_t other_low[2] = {right[n].words[2], right[n].words[3]};
        add_split_product<kTf32>(of[tile++], high.words, low.words, other_high, other_low);
      }
    }
  }

  // Adds the sums to the partial ones, which start with them when `fresh`.
  template <bool kTriangle, int kRows, int kOthers>
  MMFL_DEVICE void flush(std::int64_t side, bool fresh, double* partial) const {
    const int lane = thread() % kWarp;
    int tile = 0;
#pragma unroll
    for (int m = 0; m < kRows / 2; ++m)
#pragma unroll
      for (int n = kTriangle ? 2 * m : 0; n < kOthers; ++n, ++tile)
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          double* to = partial + (16 * m + lane / 4 + c / 2 * 8) * side + 8 * n + lane % 4 * 2 + c % 2;
          keep_order();
          const auto sum = static_cast<double>(unknown(of[tile][c]));
          *to = fresh ? sum : *to + sum;
        }
  }
};

// What the warps of a block multiply.
template <bool kDiagonal, bool kTf32>
struct BlockProducts;

// Of 128 rows: two triangles of 64 rows and the square between them in two halves. Four warps take the first
// matrix step of a slab and four the second; the roles of the second four are turned round by two, for warps
// that differ by four are on the same scheduler: every scheduler has the same number of products.
template <bool kTf32>
struct BlockProducts<true, kTf32> {
  const int half = thread() / kWarp / 4;
  const int role = (thread() / kWarp + 2 * half) % 4;
  const bool triangular = role < 2;
  // Panels.
  const int left = triangular ? 8 * role : 0;
  const int right = triangular ? left : 8 + 4 * (role - 2);
  TileSums<20, kTf32> sums;

  MMFL_DEVICE void add(const PanelSlab& slab, int live) {
    if (triangular) {
      sums.template add<true, 8, 8>(slab.left[half] + left, live, slab.right[half] + right);
    } else {
      sums.template add<false, 8, 4>(slab.left[half] + left, live, slab.right[half] + right);
    }
  }

  MMFL_DEVICE void flush(std::int64_t side, bool fresh, double* partial) const {
    if (triangular) {
      sums.template flush<true, 8, 8>(side, fresh, partial);
    } else {
      sums.template flush<false, 8, 4>(side, fresh, partial);
    }
  }
};

// Of 128 rows with 128 others: 32 with 64.
template <bool kTf32>
struct BlockProducts<false, kTf32> {
  const int left = 4 * (thread() / kWarp / 2);
  const int right = 8 * (thread() / kWarp % 2);
  TileSums<16, kTf32> sums;

  MMFL_DEVICE void add(const PanelSlab& slab, int live) {
#pragma unroll 1
    for (int half = 0; half < 2; ++half)
      sums.template add<false, 4, 8>(slab.left[half] + left, live, slab.right[half] + right);
  }

  MMFL_DEVICE void flush(std::int64_t side, bool fresh, double* partial) const {
    sums.template flush<false, 4, 8>(side, fresh, partial);
  }
};

// The first rows of the groups that a block multiplies.
template <bool kDiagonal>
struct RowGroups {
  int left, right;

  // Above the diagonal pairs are counted along one group after the other.
  MMFL_DEVICE RowGroups(std::int64_t side, int pair) {
    int group = 0, other = pair;
    if (kDiagonal) {
      group = pair;
    } else {
      int behind = static_cast<int>(side / kPanelGroup) - 1;
      for (; other >= behind; --behind, ++group) other -= behind;
      other += group + 1;
    }
    left = kPanelGroup * group;
    right = kPanelGroup * other;
  }
};

// The products of one group of rows, or of one pair of different groups, over one split of the columns.
template <bool kDiagonal, bool kTf32>
MMFL_DEVICE void gram_panels(const GramDevice& args, PanelShared<kDiagonal>& shared) {
  using Shared = PanelShared<kDiagonal>;
  constexpr int kHeld = Shared::kHeld;
  const int warp = thread() / kWarp, half = warp / (kGramWarps / 2);
  const int own_panel = kHeld * warp % PanelSlab::kPanels;
  const bool of_left = kDiagonal || half == 0, of_right = kDiagonal || half == 1;
  const int pair = static_cast<int>(block_x());
  const RowGroups<kDiagonal> groups(args.side, pair);
  const int first_own = 8 * own_panel + (of_left ? groups.left : groups.right);
  BlockProducts<kDiagonal, kTf32> products;
  // Nobody asks for the products of rows that do not exist.
  const bool prepares = first_own < args.rows;
  const int live = groups.right + 8 * products.right < args.rows
                       ? static_cast<int>(args.rows) - groups.left - 8 * products.left
                       : 0;

  PanelRows<kHeld> rows(args, first_own);
  products.sums.clear();
  using Steps = Walk<float, 1>;
  const Steps start(args, block_y());
  std::int64_t column = start.column;
  int left = static_cast<int>(start.end - start.step), done = 0;  // steps
  rows.lanes.enter(start.segment);
  const auto width_of = [&](int segment) { return args.starts[segment + 1] - args.starts[segment]; };
  while (left > 0) {
    // Steps with all their columns in the segment, or one without; up to where sums are flushed.
    const std::int64_t width = width_of(rows.lanes.segment), whole = (width - column) / Steps::kStepColumns;
    int count = Steps::kFlushSteps - done % Steps::kFlushSteps;
    if (count > left) count = left;
    if (count > whole) count = whole > 0 ? static_cast<int>(whole) : 1;
    const bool copied = prepares && whole > 0 && rows.copied();
    const auto copy = [&](int step) {
      if (copied && step < count)
        rows.copy(column + step * Steps::kStepColumns, shared.stages[step % Shared::kStages][warp]);
      end_copies();
    };
    // Loaded a step before it is wanted.
    float origin[kColumns<float>] = {};
    const auto load_origin = [&](int step) {
      if (!copied || step >= count || args.origin == nullptr) return;
      const std::int64_t at = rows.lanes.column_of(0, column + step * Steps::kStepColumns);
      load_row(args.origin[rows.lanes.segment], at, at + kColumns<float>, origin);
    };
    const auto prepare = [&](int step) {
      if (!prepares || step >= count) return;
      typename PanelRows<kHeld>::Values values;
      const std::int64_t at = rows.lanes.column_of(0, column + step * Steps::kStepColumns);
      if (copied) {
        wait_for_copies<Shared::kStages - 1>();
        rows.take(shared.stages[step % Shared::kStages][warp], values);
        if (args.origin != nullptr) rows.lanes.subtract(origin, values[0]);
        rows.lanes.template subtract_means<true>(at, 0, values[0]);
      } else {
        const std::int64_t end = width_of(rows.lanes.segment);
        rows.lanes.load(column + step * Steps::kStepColumns, end, values);
        rows.lanes.template shift<false, false>(at, end, 0, values[0]);
      }
      rows.template write<kTf32>(values, own_panel, of_left, of_right, shared.slabs[step % 2]);
      // To where this step lay, whose values have been used.
      copy(step + Shared::kStages);
      load_origin(step + 1);
    };
#pragma unroll 1
    for (int stage = 0; stage < Shared::kStages; ++stage) copy(stage);
    load_origin(0);
    // Every slab is written a step before it is multiplied.
    for (int step = -1; step < count; ++step) {
      // Of the two warps of a scheduler one multiplies while the other prepares.
#pragma unroll 1
      for (int turn = 0; turn < 2; ++turn) {
        if (turn == half) {
          prepare(step + 1);
        } else if (step >= 0) {
          products.add(shared.slabs[step % 2], live);
        }
      }
      sync_block();
    }
    column += count * Steps::kStepColumns;
    left -= count;
    done += count;
    if (left > 0 && column >= width) {
      int segment = rows.lanes.segment + 1;
      while (width_of(segment) == 0) ++segment;
      rows.lanes.enter(segment);
      column = 0;
    }
    if (left == 0 || done % Steps::kFlushSteps == 0) {
      // Else the places of all sums would be worked out before the loop and kept.
      const std::int64_t side = unknown(args.side);
      const RowGroups<kDiagonal> to(side, pair);
      const bool fresh = done <= Steps::kFlushSteps;
      double* partial = args.partial + block_y() * side * (side + 1);
#pragma unroll 1
      for (int turn = 0; turn < 2; ++turn) {
        // On the diagonal both halves have sums of the same products.
        if (turn == half && live > 0)
          products.flush(side, fresh && (turn == 0 || !kDiagonal),
                         partial + (to.left + 8 * products.left) * side + to.right + 8 * products.right);
        sync_block();
      }
      products.sums.clear();
      if (kDiagonal && prepares) rows.lanes.flush_sums(to.left + 8 * own_panel, fresh, partial + side * side);
    }
  }
}

}  // namespace device
}  // namespace mmfl
