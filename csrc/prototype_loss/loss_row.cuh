// What forward and backward have in common: how a row of features and the length of a vector are read.
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

}  // namespace device
}  // namespace mmfl
