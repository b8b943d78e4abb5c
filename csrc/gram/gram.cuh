// A warp holds the products of its rows in registers and reads columns in the layout of the matrix
// instructions: every lane copies to shared memory what it will read itself, and nothing waits for another
// warp. For the product X X^T the same registers are the left and the right operand. README.md beside this
// file derives the shifts.
#pragma once

#include "common/block_sum.cuh"
#include "common/products.cuh"
#include "common/row_chunk.cuh"
#include "gram/gram_plan.h"

namespace mmfl {
namespace device {

// Of the columns one lane adds up in its compute type before they go to the partial sums in double.
constexpr std::int64_t kFlushColumns = 8192;
// The mean of a row is estimated from kGramSampled of its elements, or from all.
constexpr std::int64_t kSampleRuns = 256;
constexpr std::int64_t kSampleRun = kGramSampled / kSampleRuns;

// The column means of a warp's rows, subtracted from them. Differences from the first row, so that equal rows
// become zero to the last bit. Rows are the lane's own in every panel; those from `count` on are the first
// one again. `share` is 1 / count.
template <typename T, int kPanels>
MMFL_DEVICE void subtract_centroid(T (&rows)[kPanels][kColumns<T>], std::int64_t count, T share) {
  const int lane = thread() % kWarp;
  T means[kColumns<T>], probe = 0;
#pragma unroll
  for (int v = 0; v < kColumns<T>; ++v) {
    T first = shuffle(rows[0][v], lane % 4);
    if (!is_finite(first)) first = 0;
    T sum = 0;
#pragma unroll
    for (int i = 0; i < kPanels; ++i) {
      rows[i][v] -= first;
      sum += rows[i][v];
    }
#pragma unroll
    for (int mask = 4; mask < kWarp; mask *= 2) sum += shuffle_xor(sum, mask);
    means[v] = sum * share;
    probe += sum * T(0);
  }
  if (any_lane(probe != 0)) {
#pragma unroll
    for (int v = 0; v < kColumns<T>; ++v) {
      T sum = 0, members = 0;
#pragma unroll
      for (int i = 0; i < kPanels; ++i) {
        const bool finite = is_finite(rows[i][v]) && lane / 4 + 8 * i < count;
        sum += finite ? rows[i][v] : T(0);
        members += finite ? T(1) : T(0);
      }
#pragma unroll
      for (int mask = 4; mask < kWarp; mask *= 2) {
        sum += shuffle_xor(sum, mask);
        members += shuffle_xor(members, mask);
      }
      means[v] = members > 0 ? sum / members : T(0);
    }
  }
#pragma unroll
  for (int v = 0; v < kColumns<T>; ++v)
#pragma unroll
    for (int i = 0; i < kPanels; ++i) rows[i][v] -= means[v];
}

// A lane's rows of one set of panels: where they lie in the current segment, and their sums. What is the same
// in every step but needs a register per panel is read again each time; it is in the first-level cache.
template <typename T, int kPanels, int kVectors>
struct LaneRows {
  static constexpr std::int64_t kStep = 4 * kVectors * kColumns<T>;

  const GramDevice& args;
  const int first;  // row of the first panel that is this lane's
  int segment = 0;
  // Bit i: panel i's row takes vector loads; bit 8 + i: and has elements of 16 bits; bit 16 + i: bfloat16.
  unsigned kinds = 0;
  bool staged = false;  // whole steps of all rows of the warp go through shared memory
  const Span* spans = nullptr;
  T sums[kPanels];

  MMFL_DEVICE LaneRows(const GramDevice& arguments, std::int64_t first_row)
      : args(arguments), first(static_cast<int>(first_row) + thread() % kWarp / 4) {
#pragma unroll
    for (int i = 0; i < kPanels; ++i) sums[i] = 0;
  }

  MMFL_DEVICE bool is(int bit) const { return (kinds >> bit & 1u) != 0; }

  // First column of vector v in a step that starts at `column`.
  static MMFL_DEVICE std::int64_t column_of(int v, std::int64_t column) {
    return column + (4 * v + thread() % 4) * kColumns<T>;
  }

  MMFL_DEVICE void enter(int s) {
    segment = s;
    spans = args.spans + s * args.side + first;
    kinds = 0;
#pragma unroll
    for (int i = 0; i < kPanels; ++i) {
      const Span& span = spans[8 * i];
      if (!takes_vectors<T>(span)) continue;
      kinds |= 1u << i;
      if (span.dtype == DType::kFloat32 || span.dtype == DType::kFloat64) continue;
      kinds |= 1u << (8 + i);
      if (span.dtype == DType::kBFloat16) kinds |= 1u << (16 + i);
    }
    staged = !any_lane(kinds != (1u << kPanels) - 1);
  }

  // The step that starts at `column` of a segment of `width`.
  MMFL_DEVICE void load(std::int64_t column, std::int64_t width,
                        T (&values)[kVectors][kPanels][kColumns<T>]) const {
#pragma unroll
    for (int i = 0; i < kPanels; ++i) {
      const bool vectors = is(i), narrow = is(8 + i);
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        const std::int64_t at = column_of(v, column);
        if (vectors && at + kColumns<T> <= width) {
          const void* data = spans[8 * i].data;
          load_packed<T>(data, narrow, at, values[v][i]);
          // The next step's, so that it has only the way from the L2 cache left.
          if (at + kStep < width)
            prefetch(static_cast<const char*>(data) + (at + kStep) * (narrow ? 2 : sizeof(T)));
        } else {
          load_some<T>(spans[8 * i], at, width, values[v][i]);
        }
      }
    }
    if (kinds >> 8 == 0) return;
#pragma unroll
    for (int i = 0; i < kPanels; ++i)
#pragma unroll
      for (int v = 0; v < kVectors; ++v)
        if (is(8 + i) && column_of(v, column) + kColumns<T> <= width) widen(is(16 + i), values[v][i]);
  }

  // What a lane copies it reads itself, so no other thread has to be waited for.
  using Stage = Chunk16[kVectors * kPanels][kWarp];

  // The step that starts at `column`, on its way to `stage`; `staged` holds and it lies in the segment.
  MMFL_DEVICE void copy(std::int64_t column, Stage& stage) const {
    const int lane = thread() % kWarp;
#pragma unroll
    for (int i = 0; i < kPanels; ++i) {
      const T* at = static_cast<const T*>(spans[8 * i].data) + column_of(0, column);
#pragma unroll
      for (int v = 0; v < kVectors; ++v)
        copy_16_bytes(&stage[kVectors * i + v][lane], at + 4 * kColumns<T> * v);
    }
  }

  static MMFL_DEVICE void take(const Stage& stage, T (&values)[kVectors][kPanels][kColumns<T>]) {
    const int lane = thread() % kWarp;
#pragma unroll
    for (int i = 0; i < kPanels; ++i)
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        const Chunk16 chunk = read_16_bytes(&stage[kVectors * i + v][lane]);
        memcpy(values[v][i], chunk.words, sizeof values[v][i]);
      }
  }

  // Shifts the rows of one vector, whose first column is `column`. Columns behind the segment become 0; there
  // are none when kWhole. The centroid is that of the warp's rows, and only where these are all.
  template <bool kWhole, bool kAllRows>
  MMFL_DEVICE void shift(std::int64_t column, std::int64_t width, T share, T (&rows)[kPanels][kColumns<T>]) {
    if (args.origin != nullptr) {
      T origin[kColumns<T>];
      load_row(args.origin[segment], column, kWhole ? column + kColumns<T> : width, origin);
      subtract(origin, rows);
    } else if constexpr (kAllRows) {
      if (args.mean_origin) subtract_centroid(rows, args.rows, share);
    }
    subtract_means<kWhole>(column, width, rows);
  }

  static MMFL_DEVICE void subtract(const T (&origin)[kColumns<T>], T (&rows)[kPanels][kColumns<T>]) {
#pragma unroll
    for (int c = 0; c < kColumns<T>; ++c)
#pragma unroll
      for (int i = 0; i < kPanels; ++i) rows[i][c] -= origin[c];
  }

  // What `shift` does after it has subtracted the origin.
  template <bool kWhole>
  MMFL_DEVICE void subtract_means(std::int64_t column, std::int64_t width, T (&rows)[kPanels][kColumns<T>]) {
    const float* shifts = args.shift != nullptr ? args.shift + first : nullptr;
#pragma unroll
    for (int i = 0; i < kPanels; ++i) {
      const T own = shifts != nullptr ? static_cast<T>(shifts[8 * i]) : T(0);
      T sum = 0;
#pragma unroll
      for (int c = 0; c < kColumns<T>; ++c) {
        rows[i][c] = kWhole || column + c < width ? rows[i][c] - own : T(0);
        sum += rows[i][c];
      }
      sums[i] += sum;
    }
  }

  // Adds the sums of the rows to `partial`, which starts with them when `fresh`.
  MMFL_DEVICE void flush_sums(std::int64_t first_row, bool fresh, double* partial) {
#pragma unroll
    for (int i = 0; i < kPanels; ++i) {
      double sum = static_cast<double>(sums[i]);
      sum += shuffle_xor(sum, 1);
      sum += shuffle_xor(sum, 2);
      double* to = partial + first_row + 8 * i + thread() % kWarp / 4;
      if (thread() % 4 == 0) *to = fresh ? sum : *to + sum;
      sums[i] = 0;
    }
  }
};

// One warp's steps, in order.
template <typename T, int kVectors>
struct Walk {
  static constexpr std::int64_t kStepColumns = 4 * kVectors * kColumns<T>;
  static constexpr int kFlushSteps = static_cast<int>(kFlushColumns / kStepColumns);

  const GramDevice& args;
  std::int64_t step;
  const std::int64_t end;
  int segment;
  std::int64_t column;
  std::int64_t width;

  MMFL_DEVICE Walk(const GramDevice& arguments, std::int64_t split)
      : args(arguments),
        step(first_step(split)),
        end(first_step(split + 1)),
        segment(static_cast<int>(segment_of(args.steps, args.segments, step))) {
    place();
  }

  MMFL_DEVICE std::int64_t first_step(std::int64_t split) const {
    return args.steps[args.segments] * split / args.splits;
  }

  MMFL_DEVICE void place() {
    column = (step - args.steps[segment]) * kStepColumns;
    width = args.starts[segment + 1] - args.starts[segment];
  }

  // Of the next `most` steps, those that lie in the segment with all their columns.
  MMFL_DEVICE int whole_steps(int most) const {
    const std::int64_t whole = (width - column) / kStepColumns, left = end - step;
    const std::int64_t count = whole < left ? whole : left;
    return count < most ? static_cast<int>(count) : most;
  }

  // Whether that led to another segment.
  MMFL_DEVICE bool advance(std::int64_t count) {
    step += count;
    const int before = segment;
    while (step < end && step >= args.steps[segment + 1]) ++segment;
    place();
    return segment != before;
  }
};

template <typename Sums>
MMFL_DEVICE void flush_products(Sums& products, std::int64_t side, bool fresh, double* partial) {
  products.each([&](std::int64_t row, std::int64_t column, typename Sums::Value sum) {
    double* to = partial + row * side + column;
    keep_order();
    *to = fresh ? static_cast<double>(sum) : *to + static_cast<double>(sum);
  });
  products.clear();
}

// Steps of a warp that are on their way or being read.
constexpr int kGramStages = 3;

struct GramStages {
  Chunk16 of[kGramWarps][kGramStages][8][kWarp];
};

// All products of up to 16 * kTiles rows over one split of the columns.
template <typename T, int kTiles, bool kTf32>
MMFL_DEVICE void gram_rows(const GramDevice& args, GramStages& shared) {
  constexpr int kPanels = 2 * kTiles, kVectors = 4 / kTiles;
  // Splits are few: see plan_gram.
  const int split = static_cast<int>(block_x()) * kGramWarps + thread() / kWarp;
  if (split >= args.splits) return;
  auto& stages = shared.of[thread() / kWarp];

  LaneRows<T, kPanels, kVectors> rows(args, 0);
  Walk<T, kVectors> walk(args, split);
  Products<T, kPanels, kPanels, true, kTf32> products;
  products.clear();
  rows.enter(walk.segment);
  const T share = T(1) / static_cast<T>(args.rows);
  bool fresh = true;
  int unflushed = 0;
  T values[kVectors][kPanels][kColumns<T>];
  // Unrolled, the loop would have more factors and products in flight than there are registers.
  const auto multiply = [&](int v) {
#pragma unroll 1
    for (int c = 0; c < kColumns<T>; c += products.kPerStep) {
      products.add(values[v], values[v]);
      drop_columns<products.kPerStep>(values[v]);
    }
  };
  while (walk.step < walk.end) {
    int count = rows.staged ? walk.whole_steps(walk.kFlushSteps - unflushed) : 0;
    if (count > 0) {
      // The step so many behind the one at walk.column.
      const auto copy = [&](int behind, int left, int stage) {
        if (behind < left) rows.copy(walk.column + behind * walk.kStepColumns, stages[stage]);
        end_copies();
      };
      for (int stage = 0; stage < kGramStages - 1; ++stage) copy(stage, count, stage);
      int stage = 0, free_stage = kGramStages - 1;
      for (int left = count; left > 0; --left) {
        wait_for_copies<kGramStages - 2>();
        rows.take(stages[stage], values);
        // To where the step before lay, whose values have been used.
        copy(kGramStages - 1, left, free_stage);
        free_stage = stage;
        stage = stage == kGramStages - 1 ? 0 : stage + 1;
#pragma unroll
        for (int v = 0; v < kVectors; ++v) {
          rows.template shift<true, true>(rows.column_of(v, walk.column), walk.width, share, values[v]);
          multiply(v);
        }
        walk.column += walk.kStepColumns;
      }
    } else {
      rows.load(walk.column, walk.width, values);
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        rows.template shift<false, true>(rows.column_of(v, walk.column), walk.width, share, values[v]);
        multiply(v);
      }
      count = 1;
    }
    if (walk.advance(count)) rows.enter(walk.segment);
    unflushed += count;
    if (unflushed == walk.kFlushSteps || walk.step == walk.end) {
      double* partial = args.partial + split * args.side * (args.side + 1);
      flush_products(products, args.side, fresh, partial);
      rows.flush_sums(0, fresh, partial + args.side * args.side);
      fresh = false;
      unflushed = 0;
    }
  }
}

// The products of one pair of groups of rows over one split of the columns, in double.
MMFL_DEVICE void gram_pairs(const GramDevice& args) {
  using T = double;
  constexpr int kPanels = kGramGroup / 8;
  const std::int64_t groups = args.side / kGramGroup;
  std::int64_t pair = block_x() * kGramWarps + thread() / kWarp;
  if (pair >= groups * (groups + 1) / 2) return;
  std::int64_t left_group = 0;
  while (pair >= groups - left_group) pair -= groups - left_group++;
  const std::int64_t first_left = left_group * kGramGroup, first_right = (left_group + pair) * kGramGroup;
  double* partial = args.partial + block_y() * args.side * (args.side + 1);

  LaneRows<T, kPanels, 1> left(args, first_left), right(args, first_right);
  Walk<T, 1> walk(args, block_y());
  Products<T, kPanels, kPanels, false> products;
  products.clear();
  left.enter(walk.segment);
  right.enter(walk.segment);
  bool fresh = true;
  int unflushed = 0;
  while (walk.step < walk.end) {
    T values[1][kPanels][kColumns<T>], others[1][kPanels][kColumns<T>];
    left.load(walk.column, walk.width, values);
    right.load(walk.column, walk.width, others);
    left.template shift<false, false>(left.column_of(0, walk.column), walk.width, 0, values[0]);
    right.template shift<false, false>(left.column_of(0, walk.column), walk.width, 0, others[0]);
#pragma unroll 1
    for (int c = 0; c < kColumns<T>; c += products.kPerStep) {
      products.add(values[0], others[0]);
      drop_columns<products.kPerStep>(values[0]);
      drop_columns<products.kPerStep>(others[0]);
    }
    if (walk.advance(1)) {
      left.enter(walk.segment);
      right.enter(walk.segment);
    }
    if (++unflushed == walk.kFlushSteps || walk.step == walk.end) {
      flush_products(products, args.side, fresh, partial + first_left * args.side + first_right);
      if (pair == 0) left.flush_sums(first_left, fresh, partial + args.side * args.side);
      fresh = false;
      unflushed = 0;
    }
  }
}

// The centroid of the finite rows in one column per thread, for more rows than a warp holds.
template <typename T>
MMFL_DEVICE void gram_centroid(const GramDevice& args) {
  const std::int64_t at = block_x() * kGramThreads + thread();
  if (at >= args.columns) return;
  const std::int64_t segment = segment_of(args.starts, args.segments, at);
  const std::int64_t column = at - args.starts[segment];
  const Span* spans = args.spans + segment * args.side;
  // Differences from a row, so that the mean of equal rows is that row to the last bit.
  T first = load_element<T>(spans[0], column);
  if (!is_finite(first)) first = 0;
  T sum = 0, members = 0;
  for (std::int64_t k = 0; k < args.rows; ++k) {
    const T difference = load_element<T>(spans[k], column) - first;
    if (!is_finite(difference)) continue;
    sum += difference;
    members += 1;
  }
  static_cast<T*>(const_cast<void*>(args.origin[segment].data))[column] =
      members > 0 ? first + sum / members : T(0);
}

using GramBlockSum = BlockSum<kGramThreads>;

MMFL_DEVICE std::int64_t sampled(const GramDevice& args) {
  return args.columns <= kGramSampled ? args.columns : kGramSampled;
}

MMFL_DEVICE double sampled_mean(const GramDevice& args, std::int64_t row) {
  double sum = 0;
  for (std::int64_t part = 0; part < args.sample_parts; ++part)
    sum += args.sampled_sum[row * args.sample_parts + part];
  return sum / static_cast<double>(sampled(args));
}

// A share of the elements from which the mean of one row is estimated, which are runs of columns spread over
// all of it: sample_parts blocks for each row.
MMFL_DEVICE void gram_sample(const GramDevice& args, GramBlockSum& shared) {
  const std::int64_t row = block_x() / args.sample_parts, part = block_x() % args.sample_parts;
  const std::int64_t count = sampled(args);
  double sum = 0;
  for (std::int64_t e = part * kGramThreads + thread(); e < count; e += args.sample_parts * kGramThreads) {
    const std::int64_t at =
        count == args.columns
            ? e
            : (args.columns - kSampleRun) * (e / kSampleRun) / (kSampleRuns - 1) + e % kSampleRun;
    const std::int64_t segment = segment_of(args.starts, args.segments, at);
    const std::int64_t column = at - args.starts[segment];
    double value = load_element<double>(args.spans[segment * args.side + row], column);
    if (args.origin != nullptr && !args.mean_origin)
      value -= load_element<double>(args.origin[segment], column);
    sum += value;
  }
  const double total = sum_over_block(sum, shared);
  if (thread() == 0) args.sampled_sum[block_x()] = total;
}

// What is subtracted from all elements of a row before it is multiplied: its sampled mean, less that of the
// centroid where that is subtracted as well. One block.
MMFL_DEVICE void gram_shift(const GramDevice& args, GramBlockSum& shared) {
  double centroid = 0;
  if (args.mean_origin) {
    double sum = 0, members = 0;
    for (std::int64_t k = thread(); k < args.rows; k += kGramThreads) {
      const double mean = sampled_mean(args, k);
      if (!is_finite(mean)) continue;
      sum += mean;
      members += 1;
    }
    sum = sum_over_block(sum, shared);
    members = sum_over_block(members, shared);
    centroid = members > 0 ? sum / members : 0;
  }
  for (std::int64_t k = thread(); k < args.side; k += kGramThreads)
    args.shift[k] = static_cast<float>(sampled_mean(args, k < args.rows ? k : 0) - centroid);
}

template <int kSlices>
struct JoinSums {
  double of[kSlices][kJoinEntries<kSlices>];
};

// Adds the partial sums of a few entries per block, always in the same order.
template <int kSlices>
MMFL_DEVICE void gram_join(const GramDevice& args, JoinSums<kSlices>& shared) {
  constexpr int kEntries = kJoinEntries<kSlices>;
  const std::int64_t entries = args.side * (args.side + 1);
  const int place = thread() % kEntries, slice = thread() / kEntries;
  const std::int64_t entry = block_x() * kEntries + place;
  const std::int64_t row = entry / args.side, column = entry % args.side;
  // Behind the rows of the matrix follows the one of the sums. Below the diagonal nothing was written.
  const bool wanted = row == args.side ? column < args.rows : row <= column && column < args.rows;
  double sum = 0;
  if (wanted) {
#pragma unroll 8
    for (std::int64_t split = slice; split < args.splits; split += kSlices)
      sum += args.partial[split * entries + entry];
  }
  shared.of[slice][place] = sum;
  sync_block();
  for (int width = kSlices / 2; width > 0; width /= 2) {
    if (slice < width) shared.of[slice][place] += shared.of[slice + width][place];
    sync_block();
  }
  if (slice == 0 && wanted) args.joined[entry] = shared.of[0][place];
}

// What the joined sums say of the rows.
struct Joined {
  const GramDevice& args;

  MMFL_DEVICE double row_sum(std::int64_t i) const { return args.joined[args.side * args.side + i]; }
  // NaN and infinity stay in a sum.
  MMFL_DEVICE bool bad(std::int64_t i) const { return !is_finite(row_sum(i)); }

  // About the rows' own means, which are what the shift has left of them.
  MMFL_DEVICE double product(std::int64_t i, std::int64_t j) const {
    const double sum = args.joined[i < j ? i * args.side + j : j * args.side + i];
    if (!args.centre_rows) return sum;
    return sum - row_sum(i) * row_sum(j) / static_cast<double>(args.columns);
  }
};

// The average of the finite entries of one row of the matrix per block.
MMFL_DEVICE void gram_average(const GramDevice& args, GramBlockSum& shared) {
  const Joined joined{args};
  const std::int64_t i = block_x();
  double sum = 0, members = 0;
  for (std::int64_t j = thread(); j < args.rows; j += kGramThreads) {
    if (joined.bad(j)) continue;
    sum += joined.product(i, j);
    members += 1;
  }
  sum = sum_over_block(sum, shared);
  members = sum_over_block(members, shared);
  if (thread() == 0) args.average[i] = sum / members;
}

// One row of the result per block: with mean_origin C G C, where C subtracts the mean over the finite rows.
MMFL_DEVICE void gram_finish(const GramDevice& args, GramBlockSum& shared) {
  const Joined joined{args};
  const std::int64_t i = block_x();
  const auto mean_of = [&](std::int64_t k) {
    if (!args.centre_rows) return 0.0;
    return static_cast<double>(args.shift[k]) + joined.row_sum(k) / static_cast<double>(args.columns);
  };
  double grand = 0, mean = 0;
  if (args.mean_origin) {
    double members = 0;
    for (std::int64_t k = thread(); k < args.rows; k += kGramThreads) {
      if (joined.bad(k)) continue;
      grand += args.average[k];
      mean += mean_of(k);
      members += 1;
    }
    members = sum_over_block(members, shared);
    grand = sum_over_block(grand, shared) / members;
    mean = sum_over_block(mean, shared) / members;
  }
  for (std::int64_t j = thread(); j < args.rows; j += kGramThreads) {
    double value = joined.product(i, j);
    if (args.mean_origin) value = value - (args.average[i] + args.average[j]) + grand;
    if (i == j && value < 0) value = 0;
    args.gram[i * args.rows + j] = joined.bad(i) || joined.bad(j) ? quiet_nan<double>() : value;
  }
  if (thread() == 0)
    args.row_mean[i] = args.centre_rows && joined.bad(i) ? quiet_nan<double>() : mean_of(i) - mean;
}

}  // namespace device
}  // namespace mmfl
