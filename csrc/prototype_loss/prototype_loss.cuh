// The forward. Logits live in registers, a tile of 64 rows and 64 (in double 32) classes at a time. Slabs of
// both sides come through shared memory, the next one on its way while one is multiplied. README.md beside
// this file tells the rest.
#pragma once

#include "prototype_loss/loss_row.cuh"

namespace mmfl {
namespace device {

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

}  // namespace device
}  // namespace mmfl
