#include "algebra/algebra.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "prototype_loss/prototype_loss.h"

namespace mmfl::algebra {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kPi = 3.14159265358979323846;

// out_ij = entry(i, j) where products_ij is defined, `diagonal` where also i = j.
template <class Entry>
void for_defined_pairs(std::int64_t count, const double* products, double diagonal, double* out, Entry entry) {
  for (std::int64_t i = 0; i < count; ++i)
    for (std::int64_t j = 0; j < count; ++j) {
      const std::int64_t at = i * count + j;
      out[at] = std::isnan(products[at]) ? kNaN : i == j ? diagonal : entry(i, j);
    }
}

struct Direction {
  double square;
  double norm;
  bool has;
};

template <class Finish>
void for_cosines(std::int64_t count, const double* products, const double* row_mean, double negligible,
                 double* out, Finish finish) {
  std::vector<Direction> rows(count);
  for (std::int64_t i = 0; i < count; ++i) {
    const double square = products[i * count + i], bound = negligible * (row_mean[i] * row_mean[i]);
    const bool has = square > (std::isnan(bound) ? 0.0 : bound);
    rows[i] = {has ? square : 1.0, has ? std::sqrt(square) : 1.0, has};
  }
  for_defined_pairs(count, products, 1.0, out, [&](std::int64_t i, std::int64_t j) {
    const Direction &a = rows[i], &b = rows[j];
    if (!a.has || !b.has) return finish(0.0);
    const double ratio = std::min(a.norm, b.norm) / std::max(a.norm, b.norm);
    const double sigma = products[i * count + j] / std::max(a.square, b.square) / ratio;
    return finish(std::clamp(sigma, -1.0, 1.0));
  });
}

}  // namespace

void cosine(std::int64_t count, const double* products, const double* row_mean, double negligible,
            double* out) {
  for_cosines(count, products, row_mean, negligible, out, [](double sigma) { return sigma; });
}

void angular(std::int64_t count, const double* products, const double* row_mean, double negligible,
             double* out) {
  for_cosines(count, products, row_mean, negligible, out,
              [](double sigma) { return 1.0 - std::acos(sigma) / kPi; });
}

void sq_distance(std::int64_t count, const double* products, double* out) {
  for_defined_pairs(count, products, 0.0, out, [&](std::int64_t i, std::int64_t j) {
    const double squares = products[i * count + i] + products[j * count + j];
    const double distance = squares - (products[i * count + j] + products[j * count + i]);
    return distance < 0.0 ? 0.0 : distance;
  });
}

void alignment(std::int64_t count, const double* products, double noise, double* out) {
  std::vector<double> inverse(count);
  for (std::int64_t i = 0; i < count; ++i) {
    const double variation = products[i * count + i];
    inverse[i] = variation > noise ? 1.0 / std::sqrt(variation) : 0.0;
  }
  for_defined_pairs(count, products, 1.0, out, [&](std::int64_t i, std::int64_t j) {
    return std::min(products[i * count + j] * inverse[i] * inverse[j], 1.0);
  });
}

void mean_loss(const CountedLosses& args, void* out) {
  double total = 0.0;
  std::int64_t counted = 0;
  for (std::int64_t b = 0; b < args.clients; ++b)
    for (std::int64_t n = 0; n < args.rows; ++n) {
      const std::int64_t at = b * args.rows + n;
      total += args.in_double ? static_cast<const double*>(args.losses)[at]
                              : static_cast<const float*>(args.losses)[at];
      const std::int64_t label = args.labels[b * args.label_strides[0] + n * args.label_strides[1]];
      if (label == kIgnoredLabel) continue;
      const std::int64_t mask = args.masks > 1 ? b : 0;
      counted += args.class_mask == nullptr || args.class_mask[mask * args.classes + label] != 0;
    }
  const double mean = total / static_cast<double>(std::max<std::int64_t>(counted, 1));
  if (args.in_double)
    *static_cast<double*>(out) = mean;
  else
    *static_cast<float*>(out) = static_cast<float>(mean);
}

}  // namespace mmfl::algebra
