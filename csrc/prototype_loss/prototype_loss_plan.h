#pragma once

#include <cstdint>

#include "prototype_loss/prototype_loss.h"

namespace mmfl {

constexpr int kLossThreads = 128;
// Rows of the left side of a tile, be they features or prototypes.
constexpr int kLossRows = 64;
// Rows of the right side.
constexpr int loss_others(bool in_double) { return in_double ? 32 : 64; }
// Tiles whose weights a block of the backward keeps at a time.
constexpr int kLossRunTiles = 2;
// Dimensions of a gradient whose splits are joined at a time.
constexpr int loss_pass(bool in_double) { return in_double ? 64 : 128; }

// The elements that products are formed of, which decides on the matrix instruction.
enum class LossElements { kDouble, kFloat, kTf32, kBFloat16, kFloat16 };

// How the classes of a group and its rows are cut in the forward. All pointers are device memory.
struct PrototypeLossDevice {
  PrototypeLossArgs args;
  std::int64_t group_rows;   // that share prototypes, B / G * N
  std::int64_t row_tiles;    // of a group
  std::int64_t class_tiles;  // of a group
  std::int64_t splits;       // runs of class tiles
  void* loss;                // [B, N]
  void* log_sum;             // [B, N]
  void* peak;                // [splits, B, N] largest logit; with the next two null for one split
  void* target;              // [splits, B, N] logit of the label, 0 in the splits without it
  double* others;            // [splits, B, N] sum of exp(z - peak) without the label
};

// Blocks that a launch should have: two on each of 132 multiprocessors.
constexpr std::int64_t kLossBlocks = 264;

struct PrototypeLossPlan {
  LossElements elements;
  std::int64_t workspace_bytes;
  PrototypeLossDevice device;  // pointers into the workspace are offsets from its start until `place`
};

// Checks the arguments as prototype_loss_cpu does, but for the labels. `loss` and `log_sum` may be null.
Status plan_prototype_loss(const PrototypeLossArgs& args, void* loss, void* log_sum, PrototypeLossPlan& plan,
                           std::int64_t blocks = kLossBlocks);

// Turns the offsets into addresses. `workspace` is aligned to 256 bytes.
void place_prototype_loss(unsigned char* workspace, PrototypeLossPlan& plan);

// What the backward knows of a row of features before it forms a product.
template <typename T>
struct LossRowState {
  T inverse;           // 1 / length, 0 if it counts as 0 or is not finite
  T factor;            // upstream gradient / temperature
  T base;              // the largest logit
  T log_sum;           // as the forward wrote it
  T certain;           // weight of the row's own class
  bool finite;         // else it is read as zeros, and its weights are NaN
  std::int64_t label;  // -1: the row contributes nothing
};

// One of the two gradients: every tile of kLossRows of its rows is a sum over all tiles of the other side.
struct LossGradientSide {
  std::int64_t tiles;        // of a group
  std::int64_t other_tiles;  // of a group
  std::int64_t splits;       // runs of other tiles
  std::int64_t dims;         // of a chunk
  std::int64_t chunks;       // runs of dimensions
  std::int64_t passes;       // of a chunk, loss_pass dimensions at a time
  std::int64_t sums;         // groups * tiles * chunks
  // With the next two null where one block has all weights of a sum at once: [sums, splits, kLossRows, dims].
  void* partial;
  double* along;      // [sums, splits, kLossRows] the gradient along the row
  unsigned* arrived;  // [sums, passes] splits that are done
};

struct PrototypeLossBackwardDevice {
  PrototypeLossArgs args;
  PrototypeLossGradients gradients;
  std::int64_t group_rows;
  void* rows;     // [B, N] LossRowState
  void* inverse;  // [G, C] of prototypes, as in LossRowState; NaN: not finite
  LossGradientSide features;
  LossGradientSide prototypes;
};

struct PrototypeLossBackwardPlan {
  LossElements elements;
  std::int64_t workspace_bytes;
  PrototypeLossBackwardDevice device;
};

Status plan_prototype_loss_backward(const PrototypeLossArgs& args, const PrototypeLossGradients& gradients,
                                    PrototypeLossBackwardPlan& plan, std::int64_t blocks = kLossBlocks);

void place_prototype_loss_backward(unsigned char* workspace, PrototypeLossBackwardPlan& plan);

}  // namespace mmfl
