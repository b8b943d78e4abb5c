// The backward. A tile of logits is formed as in the forward, with features or prototypes on its left side;
// as a warp needs all it knows of its 16 rows there, the weights go from one product to the next without
// leaving the registers.
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
      for (std::int64_t i = number; i < side->sums; i += threads) side->arrived[i] = 0;

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

// The other side of a tile, be it features or prototypes.
template <typename E>
struct LossOthers {
  using T = Compute<E>;
  const void* start[kOthers<E>];
  T inverse[kOthers<E>];
};

template <typename E>
struct LossGradientShared {
  using T = Compute<E>;
  Slab<E, kLossRows> own[2];
  Slab<E, kOthers<E>> others[2];
  const void* own_start[kLossRows];
  T own_inverse[kLossRows];
  LossOthers<E> other[2];
  // Of the rows of features on either side; those on the own side do not change.
  LossRowState<T> rows[2][kLossRows];
  const unsigned char* mask[2][kLossRows];
  bool last;
};

// One tile of one of the gradients, over one run of the other side and one of the dimensions.
template <typename E, bool kTf32>
struct LossGradient {
  using T = Compute<E>;
  using Shared = LossGradientShared<E>;
  static constexpr int kPanels = kOtherPanels<E>;
  static constexpr int kDims = loss_chunk(sizeof(E) == 8);
  static constexpr int kSlabs = kDims / kSlabColumns<E>;
  static constexpr int kParts = kColumns<E> / kColumns<T>;  // of the sums that belong to a chunk

  const bool of_features;  // else of prototypes
  const PrototypeLossBackwardDevice& call;
  const PrototypeLossArgs& args;
  const LossGradientSide& side;
  Shared& shared;
  const std::int64_t split, sum_number;  // of all sums of the side
  const std::int64_t first_dim, group;
  const std::int64_t first, count;  // own rows
  const std::int64_t other_rows;    // of the group
  const int own;                    // first row of the warp
  Products<T, 2, kColumns<E>, false, kTf32> sums[kSlabs];
  double along[2];  // of the gradient, in the direction of the row

  MMFL_DEVICE LossGradient(const PrototypeLossBackwardDevice& arguments, bool gradient_of_features,
                           std::int64_t block, Shared& memory)
      : of_features(gradient_of_features),
        call(arguments),
        args(arguments.args),
        side(of_features ? arguments.features : arguments.prototypes),
        shared(memory),
        split(block % side.splits),
        sum_number(block / side.splits),
        first_dim(sum_number % side.chunks * kDims),
        group(sum_number / side.chunks / side.tiles),
        first(sum_number / side.chunks % side.tiles * kLossRows),
        count(smaller((of_features ? call.group_rows : args.classes) - first, kLossRows)),
        other_rows(of_features ? args.classes : call.group_rows),
        own(16 * (thread() / kWarp)) {}

  static MMFL_DEVICE std::int64_t smaller(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

  MMFL_DEVICE const Strided& tensor(bool features) const {
    return features ? args.features : args.prototypes;
  }

  // Row `number` of the group's features to the tables; `place` says in which.
  MMFL_DEVICE void describe_row(std::int64_t number, bool inside, int table, int place, const void*& start,
                                T& inverse) {
    LossRowState<T> state{0, 0, 0, 0, 0, false, kNoLabel};
    start = nullptr;
    shared.mask[table][place] = nullptr;
    if (inside) {
      const std::int64_t flat = group * call.group_rows + number;
      state = static_cast<const LossRowState<T>*>(call.rows)[flat];
      const std::int64_t client = flat / args.rows;
      if (state.finite) start = start_of(args.features, client, flat % args.rows);
      if (args.masks > 0)
        shared.mask[table][place] = args.class_mask + client / (args.clients / args.masks) * args.classes;
    }
    shared.rows[table][place] = state;
    inverse = state.inverse;
  }

  MMFL_DEVICE void describe_prototype(std::int64_t number, bool inside, const void*& start, T& inverse) {
    start = nullptr;
    inverse = 0;
    if (!inside) return;
    const T known = static_cast<const T*>(call.inverse)[group * args.classes + number];
    // Rows that use one that is not finite have a NaN weight; the others have weight 0, which must stay 0.
    if (!is_finite(known)) return;
    inverse = known;
    start = start_of(args.prototypes, group, number);
  }

  MMFL_DEVICE void describe_own() {
    if (thread() >= kLossRows) return;
    const bool inside = thread() < count;
    if (of_features) {
      describe_row(first + thread(), inside, 0, thread(), shared.own_start[thread()],
                   shared.own_inverse[thread()]);
    } else {
      describe_prototype(first + thread(), inside, shared.own_start[thread()], shared.own_inverse[thread()]);
    }
  }

  MMFL_DEVICE void describe_others(std::int64_t tile) {
    if (thread() >= kOthers<E>) return;
    LossOthers<E>& other = shared.other[tile % 2];
    const std::int64_t number = tile * kOthers<E> + thread();
    const bool inside = number < other_rows;
    if (of_features) {
      describe_prototype(number, inside, other.start[thread()], other.inverse[thread()]);
    } else {
      describe_row(number, inside, static_cast<int>(tile % 2), thread(), other.start[thread()],
                   other.inverse[thread()]);
    }
  }

  // As it will be multiplied, for its other uses must agree with that.
  static MMFL_DEVICE T factor_of(T weight) {
    if (!(weight == weight)) return quiet_nan<T>();
    if constexpr (kTf32) return rounded_to_tf32(weight);
    return weight;
  }

  // Turns logits into the weights dloss/dlogit / temperature, times what makes unit vectors of the others.
  template <bool kOfFeatures>
  MMFL_DEVICE void weigh(std::int64_t tile, int live, Scores<E, kPanels, kTf32>& scores) {
    const LossOthers<E>& other = shared.other[tile % 2];
    const std::int64_t first_other = tile * kOthers<E>;
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
          const int j = 8 * n + lane % 4 * 2 + c;
          const int table = kOfFeatures ? 0 : static_cast<int>(tile % 2), at = kOfFeatures ? i : j;
          const LossRowState<T>& row = shared.rows[table][at];
          const unsigned char* mask = shared.mask[table][at];
          const std::int64_t number = kOfFeatures ? first_other + j : first + i;
          T weight = 0;
          if (row.label >= 0 && number < args.classes && (mask == nullptr || mask[number] != 0)) {
            const T along_other = scores.at(half, n, c) * shared.own_inverse[i];
            const T cosine = along_other * other.inverse[j];
            weight = number == row.label ? row.certain
                                         // Two steps, so that large logits cancel before anything is rounded.
                                         : exp_of((cosine * scale - row.base) - row.log_sum) * row.factor;
            weight = factor_of(weight * other.inverse[j]);
            along_row += weight * along_other;
          }
          scores.at(half, n, c) = weight;
        }
      }
      along[half] += static_cast<double>(sum_over_lanes(along_row, 4));
    }
  }

  // Adds the weighted others' slab `q` of this block's dimensions.
  MMFL_DEVICE void add_others(Slab<E, kOthers<E>>& others, int live, Scores<E, kPanels, kTf32>& weights,
                              Products<T, 2, kColumns<E>, false, kTf32>& to) {
    const int chunk = thread() % kWarp / 4, row = thread() % 4 * 2;
#pragma unroll
    for (int n = 0; n < kPanels; ++n) {
      if (n >= live) continue;
      T left[2][2], right[kColumns<E>][2], first_row[kColumns<E>], second_row[kColumns<E>];
      unpack<E>(others.read(8 * n + row, chunk), first_row);
      unpack<E>(others.read(8 * n + row + 1, chunk), second_row);
#pragma unroll
      for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int c = 0; c < 2; ++c) left[half][c] = weights.at(half, n, c);
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

  MMFL_DEVICE void run() {
    const std::int64_t first_tile = side.other_tiles * split / side.splits;
    const std::int64_t end_tile = side.other_tiles * (split + 1) / side.splits;
    const std::int64_t depth = (args.dims + kSlabColumns<E> - 1) / kSlabColumns<E>;
    const std::int64_t dims_left = args.dims - first_dim;
    const int slabs =
        dims_left >= kDims ? kSlabs : static_cast<int>((dims_left + kSlabColumns<E> - 1) / kSlabColumns<E>);
    along[0] = along[1] = 0;
#pragma unroll
    for (int q = 0; q < kSlabs; ++q) sums[q].clear();
    describe_own();
    if (first_tile < end_tile) describe_others(first_tile);
    sync_block();

    // What is loaded next: slabs of both sides up to `depth`, then those of the others that are added.
    std::int64_t next_tile = first_tile, next_slab = 0;
    SlabLoad<E, kLossRows> own_load;
    SlabLoad<E, kOthers<E>> other_load;
    int buffer = 0;
    const auto load = [&] {
      const bool both = next_slab < depth;
      const std::int64_t column =
          both ? next_slab * kSlabColumns<E> : first_dim + (next_slab - depth) * kSlabColumns<E>;
      const Strided &own_tensor = tensor(of_features), &other_tensor = tensor(!of_features);
      if (both)
        own_load.load([&](int row) { return shared.own_start[row]; }, own_tensor.strides[2], own_tensor.dtype,
                      column, args.dims);
      other_load.load([&](int row) { return shared.other[next_tile % 2].start[row]; },
                      other_tensor.strides[2], other_tensor.dtype, column, args.dims);
    };
    const auto write = [&](int to) {
      if (next_slab < depth) own_load.write(shared.own[to]);
      other_load.write(shared.others[to]);
      if (++next_slab < depth + slabs) return;
      next_slab = 0;
      ++next_tile;
    };
    const auto step = [&](auto multiply) {
      const bool more = next_tile < end_tile;
      if (more) load();
      multiply();
      buffer ^= 1;
      if (more) write(buffer);
      sync_block();
    };
    if (first_tile < end_tile) {
      load();
      write(0);
      sync_block();
    }
    for (std::int64_t tile = first_tile; tile < end_tile; ++tile) {
      const std::int64_t width = smaller(other_rows - tile * kOthers<E>, kOthers<E>);
      const int live = own < count ? static_cast<int>(width + 7) / 8 : 0;
      if (tile + 1 < end_tile) describe_others(tile + 1);
      Scores<E, kPanels, kTf32> scores;
      scores.clear();
      for (std::int64_t slab = 0; slab < depth; ++slab)
        step([&] { scores.add(shared.own[buffer], own, shared.others[buffer], live); });
      if (live > 0 && of_features) weigh<true>(tile, live, scores);
      if (live > 0 && !of_features) weigh<false>(tile, live, scores);
#pragma unroll
      for (int q = 0; q < kSlabs; ++q)
        if (q < slabs) step([&] { add_others(shared.others[buffer], live, scores, sums[q]); });
    }
    if (side.splits == 1) {
      each([&](int row, int dim, int half, const T(&values)[kColumns<T>]) {
        finish(row, dim, static_cast<T>(along[half]), values);
      });
    } else {
      leave_partial();
      join();
    }
  }

  // visit(row, dim, half, values) of every run of dimensions that this lane holds.
  template <typename Visit>
  MMFL_DEVICE void each(Visit visit) {
    const int lane = thread() % kWarp;
    if (own >= count) return;
#pragma unroll
    for (int q = 0; q < kSlabs; ++q)
#pragma unroll
      for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int c = 0; c < 2; ++c)
#pragma unroll
          for (int part = 0; part < kParts; ++part) {
            T values[kColumns<T>];
#pragma unroll
            for (int d = 0; d < kColumns<T>; ++d) values[d] = sums[q].at(half, part * kColumns<T> + d, c);
            visit(own + 8 * half + lane / 4,
                  q * kSlabColumns<E> + (lane % 4 * 2 + c) * kColumns<E> + part * kColumns<T>, half, values);
          }
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

  MMFL_DEVICE T* partial_of(std::int64_t s) const {
    return static_cast<T*>(side.partial) + (sum_number * side.splits + s) * kLossRows * kDims;
  }
  MMFL_DEVICE double* along_of(std::int64_t s) const {
    return side.along + (sum_number * side.splits + s) * kLossRows;
  }

  MMFL_DEVICE void leave_partial() {
    T* partial = partial_of(split);
    each([&](int row, int dim, int half, const T(&values)[kColumns<T>]) {
      store_16_bytes(partial + row * kDims + dim, packed(values));
      if (dim == 0) along_of(split)[row] = along[half];
    });
  }

  // The block that comes last adds the splits up, always in the same order.
  MMFL_DEVICE void join() {
    sync_block();
    if (thread() == 0) shared.last = count_arrival(side.arrived + sum_number) + 1 == side.splits;
    sync_block();
    if (!shared.last) return;
    constexpr int kRuns = kDims / kColumns<T>;
    for (int run = thread(); run < count * kRuns; run += kLossThreads) {
      const int row = run / kRuns, dim = run % kRuns * kColumns<T>;
      double totals[kColumns<T>] = {}, along_row = 0;
#pragma unroll 4
      for (std::int64_t s = 0; s < side.splits; ++s) {
        const Chunk16 chunk = read_16_bytes(partial_of(s) + row * kDims + dim);
        T values[kColumns<T>];
        memcpy(values, chunk.words, sizeof values);
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
