// Products of more rows than a warp holds, in float: the warps of a block shift and split each row once, into
// shared memory in the layout of the matrix instructions, and multiply what all of them wrote there.
#pragma once

#include "gram/gram.cuh"

namespace mmfl {
namespace device {

// A block multiplies the rows of a group with each other (kDiagonal) or with those of a later group. 96 KiB at
// most, for a chip of compute capability 8.6 has no more.
template <bool kDiagonal>
struct PanelShared {
  static constexpr int kPanels = (kDiagonal ? 1 : 2) * kPanelGroup / 8;
  static constexpr int kOwn = kPanels / kGramWarps;  // panels that one warp shifts and splits
  static constexpr int kStages = kDiagonal ? 4 : 2;
  // A step of columns is written while the one before is multiplied. Its 16 columns are two steps of the
  // matrix instructions, in an order of their own: a lane's first two columns and its last two.
  Chunk16 slabs[2][2][kPanels][kWarp];
  // What a lane copies it reads itself. Elements of 16 bits take half a chunk.
  Chunk16 stages[kStages][kGramWarps][kOwn][kWarp];
};

// The rows that one warp shifts and splits.
template <int kOwn>
struct PanelRows {
  using Stage = Chunk16[kOwn][kWarp];
  using Values = float[1][kOwn][kColumns<float>];

  LaneRows<float, kOwn, 1> lanes;

  MMFL_DEVICE PanelRows(const GramDevice& args, std::int64_t first) : lanes(args, first) {}

  // Whether steps that lie in the segment with all their columns can be copied.
  MMFL_DEVICE bool copied() const {
    constexpr unsigned kAll = (1u << kOwn) - 1;
    return !any_lane((lanes.kinds & kAll) != kAll);
  }

  MMFL_DEVICE void copy(std::int64_t column, Stage& stage) const {
    const std::int64_t at = lanes.column_of(0, column);
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
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
    LaneRows<float, kOwn, 1>::take(stage, values);
#pragma unroll
    for (int i = 0; i < kOwn; ++i)
      if (lanes.is(8 + i)) widen(lanes.is(16 + i), values[0][i]);
  }

  // Splits the factors of one step for the warps that will multiply them.
  template <bool kTf32, int kPanels>
  static MMFL_DEVICE void write(const Values& values, int first, Chunk16 (&slab)[2][kPanels][kWarp]) {
    using Sums = Products<float, 2, 1, false, kTf32>;
#pragma unroll
    for (int i = 0; i < kOwn; ++i)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        Chunk16 chunk;
#pragma unroll
        for (int k = 0; k < 2; ++k)
          Sums::split(values[0][i][2 * half + k], chunk.words[k], chunk.words[2 + k]);
        store_16_bytes(&slab[half][first + i][thread() % kWarp], chunk);
      }
  }
};

template <int kCount, int kPanels>
MMFL_DEVICE void read_panels(const Chunk16 (&slab)[kPanels][kWarp], int first, Chunk16 (&chunks)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) chunks[i] = read_16_bytes(&slab[first + i][thread() % kWarp]);
}

// What the warps of a block multiply. Half of them take the first matrix step of a slab and half the second;
// four of them share the products. Warps that differ by four are on the same scheduler, so the roles of the
// second half are turned round by two: every scheduler has the same number of products.
template <bool kDiagonal, bool kTf32>
struct BlockProducts;

// Of 128 rows: two triangles of 64 rows and the square between them in two halves.
template <bool kTf32>
struct BlockProducts<true, kTf32> {
  const int role = (thread() / kWarp + thread() / kWarp / 4 * 2) % 4;
  const bool triangular = role < 2;
  // Panels.
  const int left = triangular ? 8 * role : 0;
  const int right = triangular ? left : 8 + 4 * (role - 2);
  Products<float, 8, 8, true, kTf32> triangle;
  Products<float, 8, 4, false, kTf32> square;

  MMFL_DEVICE void clear() {
    triangle.clear();
    square.clear();
  }

  MMFL_DEVICE void add(const Chunk16 (&slab)[16][kWarp]) {
    Chunk16 rows[8];
    read_panels(slab, left, rows);
    if (triangular) {
      const typename decltype(triangle)::template Operand<8> a(rows);
      triangle.multiply(a, a, 8);
    } else {
      Chunk16 others[4];
      read_panels(slab, right, others);
      const typename decltype(square)::template Operand<8> a(rows);
      const typename decltype(square)::template Operand<4> b(others);
      square.multiply(a, b, 4);
    }
  }

  MMFL_DEVICE void flush(std::int64_t side, bool fresh, double* partial) {
    if (triangular) {
      flush_products(triangle, side, fresh, partial);
    } else {
      flush_products(square, side, fresh, partial);
    }
  }
};

// Of 128 rows with 128 others: squares of 64.
template <bool kTf32>
struct BlockProducts<false, kTf32> {
  const int role = thread() / kWarp % 4;
  const int left = 8 * (role / 2);
  const int right = 8 * (role % 2);
  Products<float, 8, 8, false, kTf32> square;

  MMFL_DEVICE void clear() { square.clear(); }

  MMFL_DEVICE void add(const Chunk16 (&slab)[32][kWarp]) {
    Chunk16 rows[8], others[8];
    read_panels(slab, left, rows);
    read_panels(slab, 16 + right, others);
    const typename decltype(square)::template Operand<8> a(rows), b(others);
    square.multiply(a, b, 8);
  }

  MMFL_DEVICE void flush(std::int64_t side, bool fresh, double* partial) {
    flush_products(square, side, fresh, partial);
  }
};

// The products of one group of rows, or of one pair of different groups, over one split of the columns.
template <bool kDiagonal, bool kTf32>
MMFL_DEVICE void gram_panels(const GramDevice& args, PanelShared<kDiagonal>& shared) {
  using Shared = PanelShared<kDiagonal>;
  constexpr int kOwn = Shared::kOwn;
  std::int64_t left_group = 0, right_group = block_x();
  if (kDiagonal) {
    left_group = right_group;
  } else {
    while (right_group >= args.side / kPanelGroup - left_group - 1)
      right_group -= args.side / kPanelGroup - ++left_group;
    right_group += left_group + 1;
  }
  const int warp = thread() / kWarp, own_panel = kOwn * warp;
  const bool of_left = kDiagonal || warp < kGramWarps / 2;
  const std::int64_t first_own = of_left ? left_group * kPanelGroup + 8 * own_panel
                                         : right_group * kPanelGroup + 8 * own_panel - kPanelGroup;
  BlockProducts<kDiagonal, kTf32> products;
  const std::int64_t left = left_group * kPanelGroup + 8 * products.left,
                     right = right_group * kPanelGroup + 8 * products.right;
  // Nobody asks for the products of rows that do not exist.
  const bool prepares = first_own < args.rows, multiplies = left < args.rows && right < args.rows;
  const int half = warp / 4;
  double* partial = args.partial + block_y() * args.side * (args.side + 1);

  PanelRows<kOwn> rows(args, first_own);
  Walk<float, 1> walk(args, block_y());
  products.clear();
  rows.lanes.enter(walk.segment);
  bool fresh = true;
  int unflushed = 0;
  while (walk.step < walk.end) {
    // Steps with all their columns in the segment, or one without.
    const int whole = walk.whole_steps(walk.kFlushSteps - unflushed), count = whole > 0 ? whole : 1;
    const bool copied = prepares && whole > 0 && rows.copied();
    const auto copy = [&](int step) {
      if (copied && step < count)
        rows.copy(walk.column + step * walk.kStepColumns, shared.stages[step % Shared::kStages][warp]);
      end_copies();
    };
    const auto prepare = [&](int step) {
      if (!prepares || step >= count) return;
      typename PanelRows<kOwn>::Values values;
      const std::int64_t column = walk.column + step * walk.kStepColumns;
      auto& slab = shared.slabs[step % 2];
      if (copied) {
        wait_for_copies<Shared::kStages - 1>();
        rows.take(shared.stages[step % Shared::kStages][warp], values);
        rows.lanes.template shift<true>(rows.lanes.column_of(0, column), walk.width, 0, values[0]);
      } else {
        rows.lanes.load(column, walk.width, values);
        rows.lanes.template shift<false>(rows.lanes.column_of(0, column), walk.width, 0, values[0]);
      }
      rows.template write<kTf32>(values, own_panel, slab);
      // To where this step lay, whose values have been used.
      copy(step + Shared::kStages);
    };
    for (int stage = 0; stage < Shared::kStages; ++stage) copy(stage);
    prepare(0);
    sync_block();
    for (int step = 0; step < count; ++step) {
      // Of the two warps of a scheduler one multiplies while the other prepares.
#pragma unroll 1
      for (int turn = 0; turn < 2; ++turn) {
        if (turn == half) {
          prepare(step + 1);
        } else if (multiplies) {
          products.add(shared.slabs[step % 2][half]);
        }
      }
      sync_block();
    }
    if (walk.advance(count)) rows.lanes.enter(walk.segment);
    unflushed += count;
    if (unflushed == walk.kFlushSteps || walk.step == walk.end) {
      for (int turn = 0; turn < 2; ++turn) {
        if (turn == half && multiplies)
          products.flush(args.side, fresh && turn == 0, partial + left * args.side + right);
        sync_block();
      }
      if (kDiagonal && prepares) rows.lanes.flush_sums(first_own, fresh, partial + args.side * args.side);
      fresh = false;
      unflushed = 0;
    }
  }
}

}  // namespace device
}  // namespace mmfl
