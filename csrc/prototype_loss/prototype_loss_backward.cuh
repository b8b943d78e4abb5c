// The backward. A tile of logits is formed as in the forward, with features or prototypes on its left side,
// and turned into weights. Those of a few tiles wait in shared memory, each in the place of the lane that
// will multiply with it, until all dimensions of the block have been summed up with them.
#pragma once

#include "prototype_loss/loss_row.cuh"

namespace mmfl {
namespace device {

// What the backward has to know of one row of features or one prototype per warp; and clears the counters.
template <typename T>
MMFL_DEVICE void prototype_loss_describe(const PrototypeLossBackwardDevice& call) {
  const PrototypeLossArgs& args = call.args;
  const std::int64_t rows = args.clients * args.rows, vectors = rows + args.groups * args.classes;
  const std::int64_t threads = (vectors + kLossWarps - 1) / kLossWarps * kLossThreads;
  const std::int64_t number = block_x() * kLossThreads + thread();
  for (const LossGradientSide* side : {&call.features, &call.prototypes})
    if (side->arrived != nullptr)
      for (std::int64_t i = number; i < side->sums * side->passes; i += threads) side->arrived[i] = 0;

  const int lane = thread() % kWarp;
  const std::int64_t vector = number / kWarp;
  if (vector >= vectors) return;
  const auto squares_of = [&](const Strided& tensor, const void* start) {
    const Span span{start, tensor.strides[2], tensor.dtype};
    T sum = 0;
    for (std::int64_t d = lane * kColumns<T>; d < args.dims; d += kWarp * kColumns<T>) {
      T values[kColumns<T>];
      load_row(span, d, args.dims, values);
#pragma unroll
      for (int c = 0; c < kColumns<T>; ++c) sum += values[c] * (args.normalise ? values[c] : T(0));
    }
    return sum_over_lanes(sum, kWarp);
  };
  if (vector >= rows) {
    const std::int64_t prototype = vector - rows;
    const void* start = start_of(args.prototypes, prototype / args.classes, prototype % args.classes);
    const T inverse = inverse_length(squares_of(args.prototypes, start), args.normalise);
    if (lane == 0) static_cast<T*>(call.inverse)[prototype] = inverse;
    return;
  }

  const LossRow row = loss_row(args, vector);
  const Strided& upstream = call.gradients.loss_gradient;
  const T share = static_cast<const T*>(
      upstream.data)[row.client * upstream.strides[0] + row.index * upstream.strides[1]];
  LossRowState<T> state{0, 0, 0, 0, 0, false, kNoLabel};
  if (row.label >= 0 && share != 0) {
    const void* start = start_of(args.features, row.client, row.index);
    const void* own = start_of(args.prototypes, vector / call.group_rows, row.label);
    const T inverse = inverse_length(squares_of(args.features, start), args.normalise);
    const T own_inverse = inverse_length(squares_of(args.prototypes, own), args.normalise);
    const Span feature{start, args.features.strides[2], args.features.dtype};
    const Span prototype{own, args.prototypes.strides[2], args.prototypes.dtype};
    T dot = 0;
    for (std::int64_t d = lane * kColumns<T>; d < args.dims; d += kWarp * kColumns<T>) {
      T left[kColumns<T>], right[kColumns<T>];
      load_row(feature, d, args.dims, left);
      load_row(prototype, d, args.dims, right);
#pragma unroll
      for (int c = 0; c < kColumns<T>; ++c) dot += left[c] * right[c];
    }
    dot = sum_over_lanes(dot, kWarp);
    const T scale = static_cast<T>(1 / args.temperature);
    const T loss = static_cast<const T*>(call.gradients.loss)[row.flat];
    state.finite = is_finite(inverse);
    state.inverse = state.finite ? inverse : T(0);
    state.factor = share * scale;
    state.log_sum = static_cast<const T*>(call.gradients.log_sum)[row.flat];
    // Exactly the logit of the label where that is the largest one.
    state.base = dot * (inverse * scale) * own_inverse + (loss - state.log_sum);
    // p - 1 without cancellation: p = exp(-loss).
    state.certain = expm1_of(-loss) * state.factor;
    state.label = row.label;
  }
  if (lane == 0) static_cast<LossRowState<T>*>(call.rows)[row.flat] = state;
}

// Rows of the other side whose weights wait in shared memory at a time.
template <typename E>
constexpr int kRun = kLossRunTiles * kOthers<E>;

template <typename E>
struct LossGradientShared {
  using T = Compute<E>;
  Slab<E, kLossRows> own[2];
  Slab<E, kOthers<E>> others[2];
  // A panel's four weights of every thread.
  alignas(16) T weights[kLossRunTiles][kOtherPanels<E>][4 / kColumns<T>][kLossThreads][kColumns<T>];
  const void* own_start[kLossRows];
  T own_inverse[kLossRows];
  const void* other_start[2][kRun<E>];  // of a run and of the next
  T other_inverse[kRun<E>];
  // Of the rows of features, be they the own ones or those of a run.
  LossRowState<T> rows[kRun<E>];
  const unsigned char* mask[kRun<E>];
  bool last;
};

// One tile of one of the gradients, over one split of the other side and one chunk of the dimensions.
template <typename E, bool kTf32>
struct LossGradient {
  using T = Compute<E>;
  using Shared = LossGradientShared<E>;
  static constexpr int kPanels = kOtherPanels<E>;
  static constexpr int kDims = loss_pass(sizeof(E) == 8);
  static constexpr int kSlabs = kDims / kSlabColumns<E>;
  static constexpr int kParts = kColumns<E> / kColumns<T>;  // of the sums that belong to a chunk
  using Sums = Products<T, 2, kColumns<E>, false, kTf32>;   // of a slab

  const bool of_features;  // else of prototypes
  const PrototypeLossBackwardDevice& call;
  const PrototypeLossArgs& args;
  const LossGradientSide& side;
  Shared& shared;
  const int split, sum_number;  // of all sums of the side
  const int first_dim, dims;    // of the block
  const std::int64_t group;
  const std::int64_t first;        // own row
  const int count;                 // own rows
  const std::int64_t other_rows;   // of the group
  const int first_tile, end_tile;  // of the others
  const int own;                   // first row of the warp
  double along[2];                 // of the gradient, in the direction of the row

  MMFL_DEVICE LossGradient(const PrototypeLossBackwardDevice& arguments, bool gradient_of_features,
                           std::int64_t block, Shared& memory)
      : of_features(gradient_of_features),
        call(arguments),
        args(arguments.args),
        side(of_features ? arguments.features : arguments.prototypes),
        shared(memory),
        split(static_cast<int>(block % side.splits)),
        sum_number(static_cast<int>(block / side.splits)),
        first_dim(static_cast<int>(sum_number % side.chunks * side.dims)),
        dims(smaller(args.dims - first_dim, side.dims)),
        group(sum_number / side.chunks / side.tiles),
        first(sum_number / side.chunks % side.tiles * kLossRows),
        count(smaller((of_features ? call.group_rows : args.classes) - first, kLossRows)),
        other_rows(of_features ? args.classes : call.group_rows),
        first_tile(static_cast<int>(side.other_tiles * split / side.splits)),
        end_tile(static_cast<int>(side.other_tiles * (split + 1) / side.splits)),
        own(16 * (thread() / kWarp)) {
    along[0] = along[1] = 0;
  }

  static MMFL_DEVICE int smaller(std::int64_t a, std::int64_t b) { return static_cast<int>(a < b ? a : b); }

  MMFL_DEVICE const Strided& tensor(bool features) const {
    return features ? args.features : args.prototypes;
  }

  // Row `number` of the group's features; one that does not exist contributes nothing.
  MMFL_DEVICE LossRowState<T> state_of(std::int64_t number) const {
    if (number >= call.group_rows) return {0, 0, 0, 0, 0, false, kNoLabel};
    return static_cast<const LossRowState<T>*>(call.rows)[group * call.group_rows + number];
  }

  // Where row `number` of either side starts; null for one that is read as zeros.
  MMFL_DEVICE const void* start(bool features, std::int64_t number) const {
    if (features) {
      if (!state_of(number).finite) return nullptr;
      const std::int64_t flat = group * call.group_rows + number;
      return start_of(args.features, flat / args.rows, flat % args.rows);
    }
    return finite_inverse(number) ? start_of(args.prototypes, group, number) : nullptr;
  }

  MMFL_DEVICE T inverse_of(std::int64_t prototype) const {
    return static_cast<const T*>(call.inverse)[group * args.classes + prototype];
  }
  MMFL_DEVICE bool finite_inverse(std::int64_t prototype) const {
    return prototype < args.classes && is_finite(inverse_of(prototype));
  }

  // What the weights need of row `number` of either side; features go to `place` of their table.
  MMFL_DEVICE void describe(bool features, std::int64_t number, int place, T& inverse) {
    if (!features) {
      // Rows that use one that is not finite have a NaN weight; the others have weight 0, which must stay 0.
      inverse = finite_inverse(number) ? inverse_of(number) : T(0);
      return;
    }
    shared.rows[place] = state_of(number);
    inverse = shared.rows[place].inverse;
    shared.mask[place] = nullptr;
    if (args.masks == 0 || number >= call.group_rows) return;
    const std::int64_t client = (group * call.group_rows + number) / args.rows;
    shared.mask[place] = args.class_mask + client / (args.clients / args.masks) * args.classes;
  }

  MMFL_DEVICE void describe_own() {
    if (thread() >= kLossRows) return;
    shared.own_start[thread()] = start(of_features, first + thread());
    describe(of_features, first + thread(), thread(), shared.own_inverse[thread()]);
  }
  MMFL_DEVICE std::int64_t other_number(int run) const {
    return std::int64_t{first_tile + run * kLossRunTiles} * kOthers<E> + thread();
  }
  MMFL_DEVICE void find_others(int run) {
    if (thread() < kRun<E>) shared.other_start[run % 2][thread()] = start(!of_features, other_number(run));
  }
  MMFL_DEVICE void describe_others(int run) {
    if (thread() < kRun<E>)
      describe(!of_features, other_number(run), thread(), shared.other_inverse[thread()]);
  }

  // As it will be multiplied, for its other uses must agree with that.
  static MMFL_DEVICE T factor_of(T weight) {
    if (!(weight == weight)) return quiet_nan<T>();
    if constexpr (kTf32) return rounded_to_tf32(weight);
    return weight;
  }

  // Turns logits of a tile of a run into the weights dloss/dlogit / temperature, times what makes unit
  // vectors of the others, and puts them where `add_others` of the same lane finds them.
  template <bool kOfFeatures>
  MMFL_DEVICE void weigh(int tile, int place, int live, Scores<E, kPanels, kTf32>& scores) {
    const std::int64_t first_other = std::int64_t{tile} * kOthers<E>;
    const T scale = static_cast<T>(1 / args.temperature);
    const int lane = thread() % kWarp;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int i = own + 8 * half + lane / 4;
      T along_row = 0;
#pragma unroll
      for (int n = 0; n < kPanels; ++n) {
        if (n >= live) continue;
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const int j = 8 * n + lane % 4 * 2 + c, other = place * kOthers<E> + j;
          const int at = kOfFeatures ? i : other;
          const LossRowState<T>& row = shared.rows[at];
          const unsigned char* mask = shared.mask[at];
          const std::int64_t number = kOfFeatures ? first_other + j : first + i;
          T weight = 0;
          if (row.label >= 0 && number < args.classes && (mask == nullptr || mask[number] != 0)) {
            const T inverse = shared.other_inverse[other];
            const T along_other = scores.at(half, n, c) * shared.own_inverse[i];
            const T cosine = along_other * inverse;
            weight = number == row.label ? row.certain
                                         // Two steps, so that large logits cancel before anything is rounded.
                                         : exp_of((cosine * scale - row.base) - row.log_sum) * row.factor;
            weight = factor_of(weight * inverse);
            along_row += weight * along_other;
          }
          scores.at(half, n, c) = weight;
        }
      }
      along[half] += static_cast<double>(sum_over_lanes(along_row, 4));
    }
#pragma unroll
    for (int n = 0; n < kPanels; ++n) {
      if (n >= live) continue;
#pragma unroll
      for (int part = 0; part < 4 / kColumns<T>; ++part) {
        T values[kColumns<T>];
#pragma unroll
        for (int v = 0; v < kColumns<T>; ++v) {
          const int weight = part * kColumns<T> + v;
          values[v] = scores.at(weight / 2, n, weight % 2);
        }
        store_16_bytes(shared.weights[place][n][part][thread()], packed(values));
      }
    }
  }

  // Adds a slab of a tile of a run, weighted.
  MMFL_DEVICE void add_others(Slab<E, kOthers<E>>& others, int place, int live, Sums& to) {
    const int chunk = thread() % kWarp / 4, row = thread() % 4 * 2;
#pragma unroll 2
    for (int n = 0; n < live; ++n) {
      T left[2][2], right[kColumns<E>][2], first_row[kColumns<E>], second_row[kColumns<E>];
      unpack<E>(others.read(8 * n + row, chunk), first_row);
      unpack<E>(others.read(8 * n + row + 1, chunk), second_row);
#pragma unroll
      for (int part = 0; part < 4 / kColumns<T>; ++part) {
        T values[kColumns<T>];
        unpack<T>(read_16_bytes(shared.weights[place][n][part][thread()]), values);
#pragma unroll
        for (int v = 0; v < kColumns<T>; ++v) {
          const int weight = part * kColumns<T> + v;
          left[weight / 2][weight % 2] = values[v];
        }
      }
#pragma unroll
      for (int d = 0; d < kColumns<E>; ++d) {
        right[d][0] = first_row[d];
        right[d][1] = second_row[d];
      }
#pragma unroll
      for (int c = 0; c < 2; c += to.kPerStep) {
        to.add(left, right);
        drop_columns<to.kPerStep>(left);
        drop_columns<to.kPerStep>(right);
      }
    }
  }

  MMFL_DEVICE int tiles_of(int run) const {
    return smaller(end_tile - first_tile - run * kLossRunTiles, kLossRunTiles);
  }
  // Splits begin with different dimensions, so that not all are joined by the block that comes last.
  MMFL_DEVICE int pass_at(int turn, int passes) const { return (turn + split) % passes; }
  MMFL_DEVICE int slabs_of(int pass) const {
    const int left = dims - pass * kDims;
    return left >= kDims ? kSlabs : (left + kSlabColumns<E> - 1) / kSlabColumns<E>;
  }

  MMFL_DEVICE void run() {
    const int depth = static_cast<int>((args.dims + kSlabColumns<E> - 1) / kSlabColumns<E>);
    const int passes = (dims + kDims - 1) / kDims;
    const int tiles = end_tile - first_tile;
    // Without others the one run has no tile, and all sums are 0.
    const int runs = tiles > kLossRunTiles ? (tiles + kLossRunTiles - 1) / kLossRunTiles : 1;
    describe_own();
    find_others(0);
    sync_block();

    // What is loaded next. Turn -1 of a run are slabs of both sides, for its logits; then, in as many turns
    // as there are passes, those of the others that are added.
    int next_run = 0, next_turn = -1, next_slab = 0, next_tile = 0;
    SlabLoad<E, kLossRows> own_load;
    SlabLoad<E, kOthers<E>> other_load;
    int buffer = 0;
    const auto load = [&] {
      const bool both = next_turn < 0;
      const int column =
          next_slab * kSlabColumns<E> + (both ? 0 : first_dim + pass_at(next_turn, passes) * kDims);
      const Strided &own_tensor = tensor(of_features), &other_tensor = tensor(!of_features);
      if (both)
        own_load.load([&](int row) { return shared.own_start[row]; }, own_tensor.strides[2], own_tensor.dtype,
                      column, args.dims);
      other_load.load([&](int row) { return shared.other_start[next_run % 2][next_tile * kOthers<E> + row]; },
                      other_tensor.strides[2], other_tensor.dtype, column, args.dims);
    };
    const auto write = [&](int to) {
      if (next_turn < 0) own_load.write(shared.own[to]);
      other_load.write(shared.others[to]);
      if (next_turn < 0) {
        if (++next_slab < depth) return;
        next_slab = 0;
        if (++next_tile < tiles_of(next_run)) return;
        next_tile = 0;
      } else {
        if (++next_tile < tiles_of(next_run)) return;
        next_tile = 0;
        if (++next_slab < slabs_of(pass_at(next_turn, passes))) return;
        next_slab = 0;
      }
      if (++next_turn < passes) return;
      next_turn = -1;
      ++next_run;
    };
    const auto step = [&](auto multiply) {
      const bool more = next_run < runs;
      if (more) load();
      multiply();
      buffer ^= 1;
      if (more) write(buffer);
      sync_block();
    };
    if (tiles > 0) {
      load();
      write(0);
      sync_block();
    }
    for (int now = 0; now < runs; ++now) {
      describe_others(now);
      find_others(now + 1);
      const int run_tiles = tiles_of(now);
      const auto live_panels = [&](int tile) {
        const int width = smaller(other_rows - std::int64_t{tile} * kOthers<E>, kOthers<E>);
        return own < count ? (width + 7) / 8 : 0;
      };
      const int first_of_run = first_tile + now * kLossRunTiles;
#pragma unroll 1
      for (int place = 0; place < run_tiles; ++place) {
        const int live = live_panels(first_of_run + place);
        Scores<E, kPanels, kTf32> scores;
        scores.clear();
#pragma unroll 1
        for (int slab = 0; slab < depth; ++slab)
          step([&] { scores.add(shared.own[buffer], own, shared.others[buffer], live); });
        if (live > 0 && of_features) weigh<true>(first_of_run + place, place, live, scores);
        if (live > 0 && !of_features) weigh<false>(first_of_run + place, place, live, scores);
      }
      const bool last = now + 1 == runs;
      if (last && side.partial != nullptr) leave_along();
#pragma unroll 1
      for (int turn = 0; turn < passes; ++turn) {
        const int pass = pass_at(turn, passes);
        const int slabs = slabs_of(pass);
#pragma unroll 1
        for (int q = 0; q < slabs; ++q) {
          const int first_column = pass * kDims + q * kSlabColumns<E>;
          Sums before, sums;
          before.clear();
          sums.clear();
          if (now > 0) recall_partial(before, first_column);
#pragma unroll 1
          for (int place = 0; place < run_tiles; ++place) {
            const int live = live_panels(first_of_run + place);
            step([&] { add_others(shared.others[buffer], place, live, sums); });
          }
          if (side.partial != nullptr) {
            leave_partial(before, sums, first_column);
            continue;
          }
          each([&](int half, int c, int part, int row, int dim) {
            T values[kColumns<T>];
#pragma unroll
            for (int d = 0; d < kColumns<T>; ++d) values[d] = sums.at(half, part * kColumns<T> + d, c);
            finish(row, first_column + dim, static_cast<T>(along[half]), values);
          });
        }
        if (last && side.partial != nullptr) join(pass);
      }
    }
  }

  // visit(half, c, part, row, dim) of every 16 bytes of a slab's sums that this lane holds.
  template <typename Visit>
  MMFL_DEVICE void each(Visit visit) {
    const int lane = thread() % kWarp;
    if (own >= count) return;
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int c = 0; c < 2; ++c)
#pragma unroll
        for (int part = 0; part < kParts; ++part)
          visit(half, c, part, own + 8 * half + lane / 4,
                (lane % 4 * 2 + c) * kColumns<E> + part * kColumns<T>);
  }

  // From the gradient of the unit vector, in place, to that of the vector.
  MMFL_DEVICE void finish(int row, int dim, T along_row, const T (&values)[kColumns<T>]) {
    const std::int64_t column = first_dim + dim;
    if (row >= count || column >= args.dims) return;
    T results[kColumns<T>];
    memcpy(results, values, sizeof results);
    if (args.normalise) {
      const Strided& from = tensor(of_features);
      const void* start = shared.own_start[row];
      const T inverse = shared.own_inverse[row];
      T vector[kColumns<T>];
      load_row<T>({start, from.strides[2], from.dtype}, column, start != nullptr ? args.dims : 0, vector);
#pragma unroll
      for (int c = 0; c < kColumns<T>; ++c)
        results[c] = (results[c] - vector[c] * inverse * along_row) * inverse;
    }
    const std::int64_t number = (of_features ? group * call.group_rows : group * args.classes) + first + row;
    store_row(of_features ? call.gradients.feature_gradient : call.gradients.prototype_gradient,
              tensor(of_features).dtype, number * args.dims, column, args.dims, results);
  }

  MMFL_DEVICE T* partial_of(int s, int row) const {
    return static_cast<T*>(side.partial) + ((sum_number * side.splits + s) * kLossRows + row) * side.dims;
  }
  MMFL_DEVICE double* along_of(int s) const {
    return side.along + (sum_number * side.splits + s) * kLossRows;
  }

  MMFL_DEVICE void leave_along() {
    const int lane = thread() % kWarp;
    if (lane % 4 > 0) return;
#pragma unroll
    for (int half = 0; half < 2; ++half) along_of(split)[own + 8 * half + lane / 4] = along[half];
  }

  // What the runs before have left.
  MMFL_DEVICE void recall_partial(Sums& before, int first_column) {
    each([&](int half, int c, int part, int row, int dim) {
      T values[kColumns<T>];
      unpack<T>(read_16_bytes(partial_of(split, row) + first_column + dim), values);
#pragma unroll
      for (int d = 0; d < kColumns<T>; ++d) before.at(half, part * kColumns<T> + d, c) = values[d];
    });
  }
  MMFL_DEVICE void leave_partial(Sums& before, Sums& sums, int first_column) {
    each([&](int half, int c, int part, int row, int dim) {
      T values[kColumns<T>];
#pragma unroll
      for (int d = 0; d < kColumns<T>; ++d) {
        const int column = part * kColumns<T> + d;
        values[d] = before.at(half, column, c) + sums.at(half, column, c);
      }
      store_16_bytes(partial_of(split, row) + first_column + dim, packed(values));
    });
  }

  // The block that comes last adds the splits up, always in the same order.
  MMFL_DEVICE void join(int pass) {
    sync_block();
    if (thread() == 0)
      shared.last = count_arrival(side.arrived + sum_number * side.passes + pass) + 1 == side.splits;
    sync_block();
    if (!shared.last) return;
    constexpr int kRuns = kSlabColumns<E> / kColumns<T>;
    const int runs = slabs_of(pass) * kRuns;
    for (int run = thread(); run < count * runs; run += kLossThreads) {
      const int row = run / runs;
      const int dim = pass * kDims + run % runs * kColumns<T>;
      double totals[kColumns<T>] = {}, along_row = 0;
#pragma unroll 8
      for (int s = 0; s < side.splits; ++s) {
        T values[kColumns<T>];
        unpack<T>(read_16_bytes(partial_of(s, row) + dim), values);
#pragma unroll
        for (int c = 0; c < kColumns<T>; ++c) totals[c] += static_cast<double>(values[c]);
        along_row += along_of(s)[row];
      }
      T values[kColumns<T>];
#pragma unroll
      for (int c = 0; c < kColumns<T>; ++c) values[c] = static_cast<T>(totals[c]);
      finish(row, dim, static_cast<T>(along_row), values);
    }
  }
};

// Both gradients, side by side: first the blocks of the features.
template <typename E, bool kTf32>
MMFL_DEVICE void prototype_loss_backward(const PrototypeLossBackwardDevice& call,
                                         LossGradientShared<E>& shared) {
  const std::int64_t blocks = call.features.sums * call.features.splits;
  const bool of_features = block_x() < blocks;
  LossGradient<E, kTf32>(call, of_features, of_features ? block_x() : block_x() - blocks, shared).run();
}

}  // namespace device
}  // namespace mmfl
