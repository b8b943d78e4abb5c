#pragma once

#include <cstdint>
#include <vector>

#include "common/row_table.h"
#include "mix/mix.h"

namespace mmfl {

constexpr int kMixThreads = 256;
// Outputs a thread works on side by side when there is more than one: few leave registers for twice the
// warps.
constexpr int kMixFew = 4, kMixMany = 8;

// What the kernels of mix.cuh work on. All pointers are device memory.
struct MixDevice {
  const Span* spans;                // [segments, rows]
  const RowBlock* outputs;          // [segments] of out_rows rows with stride 1
  const std::int64_t* widths;       // [segments]
  const std::int64_t* float_tiles;  // [segments + 1] first tile of every segment computed in float, then all
  const std::int64_t* double_tiles;
  const double* matrix;      // [out_rows, rows]
  const double* row_offset;  // [rows], or null
  double* members;           // [rows] 1 for a row that takes part, else 0, then their number; or null
  std::int64_t rows;
  std::int64_t out_rows;
  std::int64_t segments;
};

// How a call is cut, and the tables at the head of its workspace: from shapes and dtypes alone.
struct MixPlan {
  std::int64_t float_tiles;
  std::int64_t double_tiles;
  std::vector<unsigned char> tables;
  std::int64_t workspace_bytes;
  MixDevice device;  // pointers into the workspace are offsets from its start until `place_mix`
};

// Checks the arguments as mix_cpu does. The matrix, the offsets and the outputs are device memory.
Status plan_mix(const MixArgs& args, MixPlan& plan);

// Turns the offsets into addresses. `workspace` is aligned to 256 bytes.
void place_mix(unsigned char* workspace, MixPlan& plan);

}  // namespace mmfl
