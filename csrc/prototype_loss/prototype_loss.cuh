// Logits live in registers, a tile of 64 rows and 64 (in double 32) of the other side at a time: a warp has
// 16 of the rows, and as it needs all it knows of them there, its weights go from one product to the next
// without leaving the registers. Slabs of both sides come through shared memory, the next one on its way
// while one is multiplied. README.md beside this file tells the rest.
#pragma once

#include <math.h>

#include "common/slab.cuh"
#include "prototype_loss/prototype_loss_plan.h"

namespace mmfl {
namespace device {

static_assert(kLossThreads == kSlabThreads, "a block stages its slabs with all threads");

constexpr int kLossWarps = kLossThreads / kWarp;
constexpr double kShortest = 1e-12;

template <typename E>
constexpr int kOthers = loss_others(sizeof(E) == 8);
template <typename E>
constexpr int kOtherPanels = kOthers<E> / 8;

MMFL_DEVICE float exp_of(float x) { return expf(x); }
MMFL_DEVICE double exp_of(double x) { return exp(x); }
MMFL_DEVICE float expm1_of(float x) { return expm1f(x); }
MMFL_DEVICE double expm1_of(double x) { return expm1(x); }
MMFL_DEVICE float log_of(float x) { return logf(x); }
MMFL_DEVICE double log_of(double x) { return log(x); }
MMFL_DEVICE float log1p_of(float x) { return log1pf(x); }
MMFL_DEVICE double log1p_of(double x) { return log1p(x); }

template <typename T>
MMFL_DEVICE T lowest() {
  return static_cast<T>(sizeof(T) == 8 ? -__DBL_MAX__ : -static_cast<double>(__FLT_MAX__));
}

constexpr std::int64_t kNoLabel = -1;
constexpr std::int64_t kBadLabel = -2;

// One row of features: row `number` of those that share the prototypes of a group.
struct LossRow {
  std::int64_t client;
  std::int64_t index;  // in [0, N)
  std::int64_t flat;   // in [B, N]
  std::int64_t label;  // or kNoLabel for one that is ignored, or kBadLabel
  const unsigned char* mask;
};

MMFL_DEVICE LossRow loss_row(const PrototypeLossArgs& args, std::int64_t flat) {
  LossRow row;
  row.client = flat / args.rows;
  row.index = flat % args.rows;
  row.flat = flat;
  row.mask =
      args.masks == 0 ? nullptr : args.class_mask + row.client / (args.clients / args.masks) * args.classes;
  row.label = args.labels[row.client * args.label_strides[0] + row.index * args.label_strides[1]];
  if (row.label == kIgnoredLabel) {
    row.label = kNoLabel;
  } else if (row.label < 0 || row.label >= args.classes) {
    row.label = kBadLabel;
  } else if (row.mask != nullptr && row.mask[row.label] == 0) {
    row.label = kNoLabel;
  }
  return row;
}

MMFL_DEVICE const char* start_of(const Strided& tensor, std::int64_t i, std::int64_t j) {
  const std::int64_t size = tensor.dtype == DType::kFloat64 ? 8 : tensor.dtype == DType::kFloat32 ? 4 : 2;
  return static_cast<const char*>(tensor.data) + (i * tensor.strides[0] + j * tensor.strides[1]) * size;
}

// From the sum of squares of a vector, or without `normalise` from its sum of elements times 0.
template <typename T>
MMFL_DEVICE T inverse_length(T squares, bool normalise) {
  if (!is_finite(squares)) return quiet_nan<T>();
  if (!normalise) return 1;
  const double length = sqrt(static_cast<double>(squares));
  return length <= kShortest ? T(0) : static_cast<T>(1 / length);
}

// Adds to `sum` what inverse_length wants of some elements.
template <typename E>
MMFL_DEVICE void add_squares(const Chunk16& chunk, bool normalise, Compute<E>& sum) {
  using T = Compute<E>;
  T values[kColumns<E>];
  unpack<E>(chunk, values);
#pragma unroll
  for (int c = 0; c < kColumns<E>; ++c) sum += values[c] * (normalise ? values[c] : T(0));
}

template <typename T>
MMFL_DEVICE T sum_over_lanes(T sum, int lanes) {
  for (int mask = 1; mask < lanes; mask *= 2) sum += shuffle_xor(sum, mask);
  return sum;
}

// The inverse lengths of rows whose slabs pass by.
template <typename E, int kRows>
struct Lengths {
  using T = Compute<E>;
  T squares[SlabLoad<E, kRows>::kParts];

  MMFL_DEVICE void clear() {
#pragma unroll
    for (T& sum : squares) sum = 0;
  }
  MMFL_DEVICE void add(const SlabLoad<E, kRows>& load, bool normalise) {
#pragma unroll
    for (int part = 0; part < load.kParts; ++part)
      add_squares<E>(load.chunks[part], normalise, squares[part]);
  }
  MMFL_DEVICE void write(bool normalise, T (&inverse)[kRows]) {
#pragma unroll
    for (int part = 0; part < SlabLoad<E, kRows>::kParts; ++part) {
      const T sum = sum_over_lanes(squares[part], 8);
      if (thread() % 8 == 0) inverse[SlabLoad<E, kRows>::row(part)] = inverse_length(sum, normalise);
    }
  }
};

// What is known of the logits of one row so far.
template <typename T>
struct Running {
  T peak;
  T target;       // logit of the label
  double others;  // sum of exp(z - peak) without the label
};

template <typename T>
MMFL_DEVICE void write_loss(const PrototypeLossDevice& call, const LossRow& row, const Running<T>& at) {
  T loss = 0, log_sum = 0;
  const T others = static_cast<T>(at.others);
  if (row.label == kBadLabel) {
    loss = log_sum = quiet_nan<T>();
  } else if (row.label == kNoLabel) {
    loss = log_sum = 0;
  } else if (at.target == at.peak) {
    // The loss of a row that is nearly certain keeps its leading digits.
    loss = log_sum = log1p_of(others);
  } else {
    log_sum = log_of(others + exp_of(at.target - at.peak));
    loss = (at.peak - at.target) + log_sum;
  }
  static_cast<T*>(call.loss)[row.flat] = loss;
  static_cast<T*>(call.log_sum)[row.flat] = log_sum;
}

template <typename E>
struct LossShared {
  using T = Compute<E>;
  Slab<E, kLossRows> features[2];
  Slab<E, kOthers<E>> prototypes[2];
  const void* start[kLossRows];  // of a row of features; null for one that is ignored
  LossRow rows[kLossRows];
  T feature_inverse[kLossRows];
  // A warp that is late reads those of a tile while another writes those of the next but one.
  T prototype_inverse[3][kOthers<E>];
};

// One tile of rows with one run of classes.
template <typename E, bool kTf32>
MMFL_DEVICE void prototype_loss(const PrototypeLossDevice& call, LossShared<E>& shared) {
  using T = Compute<E>;
  constexpr int kPanels = kOtherPanels<E>;
  const PrototypeLossArgs& args = call.args;
  const std::int64_t split = block_x() % call.splits, tile = block_x() / call.splits;
  const std::int64_t group = tile / call.row_tiles, first = tile % call.row_tiles * kLossRows;
  const std::int64_t left = call.group_rows - first;
  const int count = left < kLossRows ? static_cast<int>(left) : kLossRows;
  const std::int64_t first_tile = call.class_tiles * split / call.splits;
  const std::int64_t end_tile = call.class_tiles * (split + 1) / call.splits;
  const std::int64_t slabs = args.dims > 0 ? (args.dims + kSlabColumns<E> - 1) / kSlabColumns<E> : 1;
  const T scale = static_cast<T>(1 / args.temperature);
  const int lane = thread() % kWarp, own = 16 * (thread() / kWarp);

  if (thread() < kLossRows) {
    LossRow row{0, 0, 0, kNoLabel, nullptr};
    if (thread() < count) row = loss_row(args, group * call.group_rows + first + thread());
    shared.rows[thread()] = row;
    shared.start[thread()] = row.label >= 0 ? start_of(args.features, row.client, row.index) : nullptr;
  }
  sync_block();

  // What is loaded next.
  std::int64_t next_tile = first_tile, next_slab = 0;
  SlabLoad<E, kLossRows> features;
  SlabLoad<E, kOthers<E>> prototypes;
  Lengths<E, kLossRows> feature_lengths;
  Lengths<E, kOthers<E>> prototype_lengths;
  const auto load = [&] {
    const std::int64_t column = next_slab * kSlabColumns<E>;
    features.load([&](int row) { return shared.start[row]; }, args.features.strides[2], args.features.dtype,
                  column, args.dims);
    prototypes.load(
        [&](int row) -> const void* {
          const std::int64_t c = next_tile * kOthers<E> + row;
          return c < args.classes ? start_of(args.prototypes, group, c) : nullptr;
        },
        args.prototypes.strides[2], args.prototypes.dtype, column, args.dims);
  };
  const auto write = [&](int buffer) {
    features.write(shared.features[buffer]);
    prototypes.write(shared.prototypes[buffer]);
    if (next_slab == 0) {
      feature_lengths.clear();
      prototype_lengths.clear();
    }
    if (next_tile == first_tile) feature_lengths.add(features, args.normalise);
    prototype_lengths.add(prototypes, args.normalise);
    if (++next_slab < slabs) return;
    if (next_tile == first_tile) feature_lengths.write(args.normalise, shared.feature_inverse);
    prototype_lengths.write(args.normalise, shared.prototype_inverse[(next_tile - first_tile) % 3]);
    next_slab = 0;
    ++next_tile;
  };
  load();
  write(0);
  sync_block();

  Running<T> running[2];
  running[0] = running[1] = {lowest<T>(), T(0), 0};
  int buffer = 0;
  for (std::int64_t at = first_tile; at < end_tile; ++at) {
    const std::int64_t first_class = at * kOthers<E>;
    const std::int64_t classes_left = args.classes - first_class;
    const int width = classes_left < kOthers<E> ? static_cast<int>(classes_left) : kOthers<E>;
    const int live = own < count ? (width + 7) / 8 : 0;
    Scores<E, kPanels, kTf32> scores;
    scores.clear();
    for (std::int64_t slab = 0; slab < slabs; ++slab) {
      const bool more = next_tile < end_tile;
      if (more) load();
      scores.add(shared.features[buffer], own, shared.prototypes[buffer], live);
      buffer ^= 1;
      if (more) write(buffer);
      sync_block();
    }
    if (live == 0) continue;
    const T* inverse = shared.prototype_inverse[(at - first_tile) % 3];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      Running<T>& now = running[half];
      const int row = own + 8 * half + lane / 4;
      const unsigned char* mask = shared.rows[row].mask;
      const T row_scale = shared.feature_inverse[row] * scale;
      T peak = now.peak;
#pragma unroll
      for (int n = 0; n < kPanels; ++n) {
        if (n >= live) continue;
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const int column = 8 * n + lane % 4 * 2 + c;
          const bool open = column < width && (mask == nullptr || mask[first_class + column] != 0);
          const T z = open ? scores.at(half, n, c) * row_scale * inverse[column] : -static_cast<T>(INFINITY);
          scores.at(half, n, c) = z;
          peak = z > peak ? z : peak;
        }
      }
      for (int step = 1; step < 4; step *= 2) {
        const T other = shuffle_xor(peak, step);
        peak = other > peak ? other : peak;
      }
      const std::int64_t label = shared.rows[row].label - first_class;
      T sum = 0;
#pragma unroll
      for (int n = 0; n < kPanels; ++n) {
        if (n >= live) continue;
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const T z = scores.at(half, n, c);
          if (8 * n + lane % 4 * 2 + c == label) {
            now.target = z;
          } else {
            sum += exp_of(z - peak);
          }
        }
      }
      sum = sum_over_lanes(sum, 4);
      if (now.others > 0 && peak > now.peak) now.others *= exp_of(now.peak - peak);
      now.others += sum;
      now.peak = peak;
    }
  }
  if (own >= count) return;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    // One lane of four has met the label.
    running[half].target = sum_over_lanes(running[half].target, 4);
    const int number = own + 8 * half + lane / 4;
    if (lane % 4 != 0 || number >= count) continue;
    const LossRow row = shared.rows[number];
    if (call.splits == 1) {
      write_loss(call, row, running[half]);
    } else {
      const std::int64_t to = split * args.clients * args.rows + row.flat;
      static_cast<T*>(call.peak)[to] = running[half].peak;
      static_cast<T*>(call.target)[to] = running[half].target;
      call.others[to] = running[half].others;
    }
  }
}

// Brings the splits of one row per thread together.
template <typename T>
MMFL_DEVICE void prototype_loss_join(const PrototypeLossDevice& call) {
  const std::int64_t rows = call.args.clients * call.args.rows;
  const std::int64_t flat = block_x() * kLossThreads + thread();
  if (flat >= rows) return;
  const T* peaks = static_cast<const T*>(call.peak) + flat;
  const T* targets = static_cast<const T*>(call.target) + flat;
  const double* others = call.others + flat;
  Running<T> all{peaks[0], T(0), 0};
  for (std::int64_t s = 1; s < call.splits; ++s)
    all.peak = peaks[s * rows] > all.peak ? peaks[s * rows] : all.peak;
  for (std::int64_t s = 0; s < call.splits; ++s) {
    all.target += targets[s * rows];
    all.others += others[s * rows] * exp_of(peaks[s * rows] - all.peak);
  }
  write_loss(call, loss_row(call.args, flat), all);
}

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
