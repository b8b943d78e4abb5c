// One element of each result, as the CPU and the GPU compute it.
#pragma once

#include <cmath>

#if defined(__CUDACC__)
#define MMFL_ENTRY __host__ __device__ __forceinline__
#else
#define MMFL_ENTRY inline
#endif

namespace mmfl::algebra {

struct Direction {
  double square;
  double norm;
  bool directed;
};

MMFL_ENTRY Direction direction(double square, double row_mean, double negligible) {
  const double bound = negligible * (row_mean * row_mean);
  const bool directed = square > (bound == bound ? bound : 0.0);
  return {directed ? square : 1.0, directed ? std::sqrt(square) : 1.0, directed};
}

MMFL_ENTRY double cosine_entry(double product, const Direction& a, const Direction& b) {
  if (!a.directed || !b.directed) return 0.0;
  const double square = b.square > a.square ? b.square : a.square;
  // Two quotients that are 1 to the last bit for equal rows.
  const double ratio = b.norm > a.norm ? a.norm / b.norm : b.norm / a.norm;
  const double sigma = product / square / ratio;
  return sigma < -1.0 ? -1.0 : sigma > 1.0 ? 1.0 : sigma;
}

MMFL_ENTRY double angular_entry(double sigma) { return 1.0 - std::acos(sigma) / 3.14159265358979323846; }

MMFL_ENTRY double sq_distance_entry(double a, double b, double upper, double lower) {
  const double distance = a + b - (upper + lower);
  return distance < 0.0 ? 0.0 : distance;
}

MMFL_ENTRY double alignment_scale(double variation, double noise) {
  return variation > noise ? 1.0 / std::sqrt(variation) : 0.0;
}

MMFL_ENTRY double alignment_entry(double product, double a, double b) {
  const double similarity = product * a * b;
  return similarity > 1.0 ? 1.0 : similarity;
}

}  // namespace mmfl::algebra
