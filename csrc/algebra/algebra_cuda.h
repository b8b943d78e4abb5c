#pragma once

#include <cstdint>

#include "common/cuda_call.h"
#include "common/status.h"

namespace mmfl {

constexpr int kAlgebraThreads = 256;

namespace algebra {
enum class Step { kCosine, kAngular, kSqDistance, kAlignment };
}  // namespace algebra

// Matrices [count, count], contiguous; `out` is not `products`.
struct AlgebraDevice {
  std::int64_t count = 0;
  const double* products = nullptr;
  const double* row_mean = nullptr;  // of cosines and angles
  double threshold = 0.0;            // negligible, or noise: see algebra.h
  double* out = nullptr;
};

// As the functions of algebra.h, but with memory of one GPU and a result of its own. Asynchronous, takes no
// workspace, and can be captured in a graph.
Status algebra_cuda(algebra::Step step, const AlgebraDevice& args, const CudaCall& call);

}  // namespace mmfl
