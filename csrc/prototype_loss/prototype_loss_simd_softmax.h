// From inner products to losses and to weights dloss/dlogit, for the rows of one tile. Included only by
// prototype_loss_cpu_simd.cpp, see common/simd.h.
#pragma once

#include <math.h>

#include "common/simd_exp.h"
#include "common/simd_log.h"
#include "common/simd_transpose.h"
#include "prototype_loss/prototype_loss_simd_rows.h"

namespace mmfl {
namespace MMFL_SIMD {
namespace {

template <typename T>
constexpr T lowest();
template <>
constexpr float lowest<float>() {
  return -__FLT_MAX__;
}
template <>
constexpr double lowest<double>() {
  return -__DBL_MAX__;
}

template <typename T>
constexpr T kMinusInfinity = -static_cast<T>(INFINITY);

template <typename T>
static inline typename Simd<T>::Vector larger(typename Simd<T>::Vector a, typename Simd<T>::Vector b) {
  return b > a ? b : a;
}

// What a tile's rows share with their logits. Arrays have room for whole vectors.
template <typename T>
struct TileRows {
  std::int64_t count;
  std::int64_t client[kTileFeatures];
  std::int64_t number[kTileFeatures];  // in [0, N)
  std::int64_t label[kTileFeatures];   // -1: the row is ignored
  const T* bar[kTileFeatures];         // 0 for classes that take part, -infinity for others and for padding
  T factor[kTileFeatures];             // from <row, unit prototype> to the logit
};

// Turns inner products of kLanes rows from `first` on into logits, of classes [begin, begin + width).
// Lane i of the result is row i's largest logit.
template <typename T>
typename Simd<T>::Vector finish_logits(const TileRows<T>& rows, std::int64_t first, std::int64_t begin,
                                       std::int64_t width, T* logits, std::int64_t pitch) {
  constexpr std::int64_t kLanes = Simd<T>::kLanes;
  typename Simd<T>::Vector largest[kLanes];
  for (std::int64_t i = 0; i < kLanes; ++i) {
    largest[i] = typename Simd<T>::Vector{} + lowest<T>();
    if (first + i >= rows.count) continue;
    T* row = logits + (first + i) * pitch;
    const T* bar = rows.bar[first + i] + begin;
    const T factor = rows.factor[first + i];
    for (std::int64_t c = 0; c < width; c += kLanes) {
      const auto shut = load(bar + c);
      const auto z = shut == 0 ? load(row + c) * factor : shut;
      largest[i] = larger<T>(largest[i], z);
      store(row + c, z);
    }
  }
  transpose<T>(largest);
  for (std::int64_t half = kLanes / 2; half > 0; half /= 2)
    for (std::int64_t i = 0; i < half; ++i) largest[i] = larger<T>(largest[i], largest[i + half]);
  return largest[0];
}

// Losses of a tile, whose logits come in blocks of classes.
template <typename T>
class TileLoss {
 public:
  explicit TileLoss(const TileRows<T>& rows) : rows_(rows) {
    for (std::int64_t i = 0; i < kTileFeatures; ++i) {
      peak_[i] = lowest<T>();
      target_[i] = 0;
      others_[i] = 0;
    }
  }

  // Takes in <row, unit prototype> for classes [begin, begin + width); they are overwritten.
  void add(std::int64_t begin, std::int64_t width, T* products, std::int64_t pitch) {
    for (std::int64_t first = 0; first < rows_.count; first += kLanes) {
      const Vector before = load(peak_ + first);
      const Vector peak = larger<T>(before, finish_logits(rows_, first, begin, width, products, pitch));
      store(peak_ + first, peak);
      Vector sums[kLanes] = {};
      const std::int64_t end = smaller(kLanes, rows_.count - first);
      for (std::int64_t i = 0; i < end; ++i) {
        const std::int64_t label = rows_.label[first + i] - begin;
        if (label < 0 || label >= width) continue;
        T& logit = products[(first + i) * pitch + label];
        target_[first + i] = logit;
        logit = kMinusInfinity<T>;
      }
      for (std::int64_t i = 0; i < end; ++i) {
        const T* logits = products + (first + i) * pitch;
        for (std::int64_t c = 0; c < width; c += kLanes)
          sums[i] += exponential(load(logits + c) - peak_[first + i]);
      }
      T shrink[kLanes], added[kLanes];
      store(shrink, exponential(before - peak));
      store(added, lane_sums<T>(sums));
      for (std::int64_t i = 0; i < kLanes; ++i)
        others_[first + i] = others_[first + i] * static_cast<double>(shrink[i]) + added[i];
    }
  }

  // Writes loss and log sum_c exp(z_c - max z) of every row.
  void finish(T* loss, T* log_sum) const {
    for (std::int64_t first = 0; first < rows_.count; first += kLanes) {
      const Vector peak = load(peak_ + first), target = load(target_ + first);
      T others[kLanes], less_one[kLanes], losses[kLanes], log_sums[kLanes];
      for (std::int64_t i = 0; i < kLanes; ++i) {
        others[i] = static_cast<T>(others_[first + i]);
        less_one[i] = static_cast<T>(others_[first + i] - 1);
      }
      // The sum without its largest term, so that the loss of a row that is nearly certain keeps its leading
      // digits.
      const Vector rest = target == peak ? load(others) : load(less_one) + exponential(target - peak);
      const Vector log = log_of_one_plus(rest);
      store(log_sums, log);
      store(losses, (peak - target) + log);
      for (std::int64_t i = 0; i < smaller(kLanes, rows_.count - first); ++i) {
        const bool ignored = rows_.label[first + i] < 0;
        loss[first + i] = ignored ? T{0} : losses[i];
        log_sum[first + i] = ignored ? T{0} : log_sums[i];
      }
    }
  }

 private:
  using Vector = typename Simd<T>::Vector;
  static constexpr std::int64_t kLanes = Simd<T>::kLanes;

  const TileRows<T>& rows_;
  T peak_[kTileFeatures];
  T target_[kTileFeatures];
  double others_[kTileFeatures];  // sum of exp(z - peak) without the target
};

// Turns <row, unit prototype> of all `width` classes into weights: `share` [count] times dloss/dlogit. A row
// with share 0 has no weights, whatever its logits.
template <typename T>
void make_weights(const TileRows<T>& rows, const T* share, const T* log_sum, std::int64_t width, T* products,
                  std::int64_t pitch) {
  constexpr std::int64_t kLanes = Simd<T>::kLanes;
  for (std::int64_t first = 0; first < rows.count; first += kLanes) {
    const std::int64_t end = smaller(kLanes, rows.count - first);
    T peak[kLanes], total[kLanes];
    store(peak, finish_logits(rows, first, 0, width, products, pitch));
    typename Simd<T>::Vector sums[kLanes] = {};
    for (std::int64_t i = 0; i < end; ++i)
      if (rows.label[first + i] >= 0)
        products[(first + i) * pitch + rows.label[first + i]] = kMinusInfinity<T>;
    for (std::int64_t i = 0; i < end; ++i) {
      T* weight = products + (first + i) * pitch;
      const T* bar = rows.bar[first + i];
      if (share[first + i] == 0) {
        std::memset(weight, 0, static_cast<std::size_t>(width) * sizeof(T));
        continue;
      }
      for (std::int64_t c = 0; c < width; c += kLanes) {
        // Two steps, so that large logits cancel before anything is rounded.
        const auto p = exponential((load(weight + c) - peak[i]) - log_sum[first + i]);
        const auto open = load(bar + c) == 0 ? p * share[first + i] : typename Simd<T>::Vector{};
        sums[i] += open;
        store(weight + c, open);
      }
    }
    // p - 1 of the label without cancellation: less what the other classes have.
    store(total, lane_sums<T>(sums));
    for (std::int64_t i = 0; i < end; ++i)
      if (share[first + i] != 0) products[(first + i) * pitch + rows.label[first + i]] = -total[i];
  }
}

}  // namespace
}  // namespace MMFL_SIMD
}  // namespace mmfl
