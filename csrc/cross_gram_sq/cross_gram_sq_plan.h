#pragma once

#include <cstdint>
#include <vector>

#include "cross_gram_sq/cross_gram_sq.h"
#include "gram/gram.h"

namespace mmfl {

constexpr int kCrossThreads = 128;
// A product is cut in square tiles of so many rows of X, or of its columns.
constexpr int kCrossTile = 64;
constexpr std::int64_t kCrossTileSize = kCrossTile * kCrossTile;

// What the kernels of cross_gram_sq.cuh work on. All pointers are device memory.
struct CrossGramSqDevice {
  const View* views;                 // [B, K]
  const std::int64_t* first_column;  // [K + 1] of every view among all columns
  const std::int64_t* first_panel;   // [K + 1] of every view among all panels of kCrossTile columns
  void* scale;                       // [B, K, n] of the rows, or null
  void* mean;                        // [B, all columns], or null
  double* partial;    // [products, splits, kCrossTileSize] in the order of lanes, or null for one split
  double* tile_sums;  // [B, tiles] of squares; null by rows
  void* held;         // [K, run, kCrossTileSize] tiles of the Gram matrices; null by columns
  double* run_sums;   // [runs, K, K], or null for one run
  double* row_mean;   // [K] that gram writes and nobody reads; null by columns
  double* out;        // [B, K, K]
  std::int64_t batch;
  std::int64_t count;  // K
  std::int64_t rows;   // n
  std::int64_t panels;
  std::int64_t
      tiles;  // of one Gram matrix, or of the products of all columns: those on and above the diagonal
  std::int64_t products;  // tiles that one launch computes
  std::int64_t splits;    // of the dimension that is summed over
  std::int64_t run;       // tiles of every Gram matrix that are held at a time
  std::int64_t runs;
  // Of one launch by rows:
  std::int64_t entry;       // of the batch
  std::int64_t first_tile;  // of the run
  DType dtype;
};

// The n x n way or the d x d way, how a call is cut, and where its arrays lie: from shapes and dtype alone.
struct CrossGramSqPlan {
  bool in_double;
  bool by_rows;
  bool tf32;
  std::vector<unsigned char> tables;  // what the workspace starts with
  std::int64_t workspace_bytes;
  std::int64_t gram_offset;  // in the workspace, in bytes, of that of gram
  std::int64_t gram_bytes;
  CrossGramSqDevice device;  // pointers into the workspace are offsets from its start until `place`
};

// Of Gram matrices that are held at a time, unless one tile of all views is more.
constexpr std::int64_t kCrossHeldBytes = std::int64_t{256} << 20;

// Checks the arguments as cross_gram_sq_cpu does.
Status plan_cross_gram_sq(const CrossGramSqArgs& args, CrossGramSqPlan& plan,
                          std::int64_t held_bytes = kCrossHeldBytes);

// Turns the offsets into addresses. `workspace` is aligned to 256 bytes.
void place_cross_gram_sq(unsigned char* workspace, CrossGramSqPlan& plan);

// The Gram matrix of the held tiles of one run, as rows of K views.
struct HeldGram {
  RowBlock block;
  std::int64_t width;
  GramArgs args(double* to, double* row_mean, bool tf32) const;
};

HeldGram held_gram(const CrossGramSqPlan& plan, std::int64_t tiles);

}  // namespace mmfl
