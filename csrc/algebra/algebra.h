#pragma once

#include <cstdint>

#include "prototype_loss/prototype_loss.h"

// The algebra behind a primitive, in one pass: what mmfl_fast/kernels/one_step writes as expressions of
// torch, which define it. Matrices are [K, K], and what is given is overwritten by the result.
namespace mmfl::algebra {

// Cosines of a Gram matrix; squared norms up to `negligible` row_mean^2 have no direction.
void cosine(std::int64_t count, double* products, const double* row_mean, double negligible, int threads);
// 1 - arccos / pi of them.
void angular(std::int64_t count, double* products, const double* row_mean, double negligible, int threads);
void sq_distance(std::int64_t count, double* products, int threads);
// p_ij / sqrt(p_ii p_jj), at most 1; a p_ii up to `noise` counts as 0.
void alignment(std::int64_t count, double* products, double noise, int threads);

// Divides weights by their sum. False for one that is negative or not finite, or a sum of 0 or infinity.
bool shares(std::int64_t count, double* weights);

// The sum of the losses [B, N], divided by how many rows count (by 1 if none does): one number of their type.
void mean_loss(const PrototypeLossArgs& args, const void* losses, void* out);

}  // namespace mmfl::algebra
