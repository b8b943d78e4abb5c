#include "algebra/algebra.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "algebra/algebra_entry.h"
#include "common/thread_pool.h"

namespace mmfl::algebra {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
// Of an element, in multiply-adds.
constexpr double kWork = 32;

// entry(i, j) replaces element (i, j), 1 the diagonal; what is NaN stays so.
template <class Entry>
void replace(std::int64_t count, double* products, int threads, Entry entry) {
  const auto size = static_cast<double>(count);
  parallel_for(count, threads_for(kWork * size * size, threads), [&](std::int64_t i) {
    for (std::int64_t j = 0; j < count; ++j) {
      double& element = products[i * count + j];
      if (!std::isnan(element)) element = i == j ? 1.0 : entry(i, j);
    }
  });
}

template <class Finish>
void replace_by_cosines(std::int64_t count, double* products, const double* row_mean, double negligible,
                        int threads, Finish finish) {
  std::vector<Direction> rows(count);
  for (std::int64_t i = 0; i < count; ++i)
    rows[i] = direction(products[i * count + i], row_mean[i], negligible);
  replace(count, products, threads, [&](std::int64_t i, std::int64_t j) {
    return finish(cosine_entry(products[i * count + j], rows[i], rows[j]));
  });
}

}  // namespace

void cosine(std::int64_t count, double* products, const double* row_mean, double negligible, int threads) {
  replace_by_cosines(count, products, row_mean, negligible, threads, [](double sigma) { return sigma; });
}

void angular(std::int64_t count, double* products, const double* row_mean, double negligible, int threads) {
  replace_by_cosines(count, products, row_mean, negligible, threads,
                     [](double sigma) { return angular_entry(sigma); });
}

void sq_distance(std::int64_t count, double* products, int threads) {
  std::vector<double> squares(count);
  for (std::int64_t i = 0; i < count; ++i) squares[i] = products[i * count + i];
  const auto size = static_cast<double>(count);
  parallel_for(count, threads_for(size * size, threads), [&](std::int64_t i) {
    products[i * count + i] = std::isnan(squares[i]) ? kNaN : 0.0;
    for (std::int64_t j = i + 1; j < count; ++j) {
      double &upper = products[i * count + j], &lower = products[j * count + i];
      upper = lower = sq_distance_entry(squares[i], squares[j], upper, lower);
    }
  });
}

void alignment(std::int64_t count, double* products, double noise, int threads) {
  std::vector<double> scale(count);
  for (std::int64_t i = 0; i < count; ++i) scale[i] = alignment_scale(products[i * count + i], noise);
  replace(count, products, threads, [&](std::int64_t i, std::int64_t j) {
    return alignment_entry(products[i * count + j], scale[i], scale[j]);
  });
}

bool shares(std::int64_t count, double* weights) {
  double total = 0.0;
  for (std::int64_t k = 0; k < count; ++k) {
    if (!(weights[k] >= 0.0)) return false;
    total += weights[k];
  }
  if (!(total > 0.0 && std::isfinite(total))) return false;
  for (std::int64_t k = 0; k < count; ++k) weights[k] /= total;
  return true;
}

void mean_loss(const PrototypeLossArgs& args, const void* losses, void* out) {
  double total = 0.0;
  std::int64_t counted = 0;
  for (std::int64_t b = 0; b < args.clients; ++b)
    for (std::int64_t n = 0; n < args.rows; ++n) {
      const std::int64_t at = b * args.rows + n;
      total +=
          args.in_double ? static_cast<const double*>(losses)[at] : static_cast<const float*>(losses)[at];
      const std::int64_t label = args.labels[b * args.label_strides[0] + n * args.label_strides[1]];
      if (label == kIgnoredLabel) continue;
      const std::int64_t mask = args.masks > 0 ? b / (args.clients / args.masks) : 0;
      counted += args.masks == 0 || args.class_mask[mask * args.classes + label] != 0;
    }
  const double mean = total / static_cast<double>(std::max<std::int64_t>(counted, 1));
  if (args.in_double)
    *static_cast<double*>(out) = mean;
  else
    *static_cast<float*>(out) = static_cast<float>(mean);
}

}  // namespace mmfl::algebra
