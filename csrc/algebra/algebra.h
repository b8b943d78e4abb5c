#pragma once

#include <cstdint>

#include "common/dtype.h"

// What the ops do with the result of a primitive, in one pass on one thread, for small results: torch takes
// a microsecond for each of a dozen expressions. mmfl_fast/kernels/algebra holds those expressions; they are
// the definitions, and these functions give the same. Matrices are [K, K] and contiguous.
namespace mmfl::algebra {

// Squared norms up to `negligible` row_mean^2 have no direction.
void cosine(std::int64_t count, const double* products, const double* row_mean, double negligible,
            double* out);
void angular(std::int64_t count, const double* products, const double* row_mean, double negligible,
             double* out);
void sq_distance(std::int64_t count, const double* products, double* out);
// tr(K_i K_j) / sqrt(tr(K_i K_i) tr(K_j K_j)); a trace up to `noise` counts as 0.
void alignment(std::int64_t count, const double* products, double noise, double* out);

// Losses [B, N] are contiguous, float32 or float64; labels [B, N] and the mask [M, C] say which of them count.
struct CountedLosses {
  const void* losses;
  bool in_double;
  std::int64_t clients;
  std::int64_t rows;
  const std::int64_t* labels;
  std::int64_t label_strides[2];
  const unsigned char* class_mask;  // null: every class takes part
  std::int64_t masks;               // 1 or B
  std::int64_t classes;
};

// Their sum, divided by how many count (by 1 if none does); one number of the losses' type.
void mean_loss(const CountedLosses& args, void* out);

}  // namespace mmfl::algebra
