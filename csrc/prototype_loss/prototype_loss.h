#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/simd_level.h"
#include "common/status.h"

namespace mmfl {

// A tensor of up to three axes with any strides, counted in elements.
struct Strided {
  const void* data;
  std::int64_t strides[3];
  DType dtype;
};

// InfoNCE of features against class prototypes: per row, with z_c = <f, p_c> / temperature over the classes
// that take part, loss = log sum_c exp z_c - z_label. `normalise` scales features and prototypes to unit
// length first; a vector no longer than 1e-12 then counts as 0. B clients of N rows; client b uses prototype
// group b / (B / G) and class mask b / (B / M).
struct PrototypeLossArgs {
  std::int64_t clients;        // B
  std::int64_t rows;           // N
  std::int64_t dims;           // D
  std::int64_t classes;        // C
  std::int64_t groups;         // G, divides B
  std::int64_t masks;          // M, divides B; 0: every class takes part
  Strided features;            // [B, N, D]
  const std::int64_t* labels;  // [B, N]
  std::int64_t label_strides[2];
  Strided prototypes;               // [G, C, D]
  const unsigned char* class_mask;  // [M, C] contiguous, not 0: takes part
  double temperature;
  bool normalise;
  bool in_double;  // type of the arithmetic, of loss, log_sum and loss_gradient
  bool tf32;       // a GPU may round the factors of its products to tf32
  int threads;
};

// A row with label -100, or whose class does not take part, is ignored: loss 0, no gradient.
constexpr std::int64_t kIgnoredLabel = -100;

// loss [B, N], log_sum [B, N]: log sum_c exp(z_c - max z); both contiguous.
// `bad_label`: flat index of the first label outside [0, C) that is not -100, then nothing is computed; or
// -1.
Status prototype_loss_cpu(const PrototypeLossArgs& args, void* loss, void* log_sum, std::int64_t* bad_label);

// loss_gradient [B, N] with strides; loss and log_sum as the forward wrote them;
// feature_gradient [B, N, D] and prototype_gradient [G, C, D] contiguous, in their tensors' dtypes.
struct PrototypeLossGradients {
  Strided loss_gradient;
  const void* loss;
  const void* log_sum;
  void* feature_gradient;
  void* prototype_gradient;
};

Status prototype_loss_backward_cpu(const PrototypeLossArgs& args, const PrototypeLossGradients& gradients);

MMFL_DECLARE_SIMD(Status prototype_loss(const PrototypeLossArgs& args, void* loss, void* log_sum))
MMFL_DECLARE_SIMD(Status prototype_loss_backward(const PrototypeLossArgs& args,
                                                 const PrototypeLossGradients& gradients))

}  // namespace mmfl
