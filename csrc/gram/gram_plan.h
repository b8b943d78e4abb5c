#pragma once

#include <cstdint>
#include <vector>

#include "common/row_table.h"
#include "gram/gram.h"

namespace mmfl {

constexpr int kGramThreads = 256;
constexpr int kGramWarps = kGramThreads / 32;
// Rows of one side of a pair when there are too many rows for one warp: of a warp in double, of a block else.
constexpr int kGramGroup = 32;
constexpr int kPanelGroup = 128;
// Elements of a row from which its mean is estimated.
constexpr std::int64_t kGramSampled = 16384;
// Entries of the partial sums that a block adds up with so many threads for each: 32 bytes at least, for
// memory gives no less.
constexpr int kFewSlices = 8, kManySlices = 64;
template <int kSlices>
constexpr int kJoinEntries = kGramThreads / kSlices;

// What the kernels of gram.cuh work on. All pointers are device memory.
struct GramDevice {
  const Span* spans;           // [segments, side]; behind the rows the first one again
  const Span* origin;          // [segments] what to subtract: the caller's row or the centroid; or null
  const std::int64_t* starts;  // [segments + 1] first column of every segment, then P
  const std::int64_t* steps;   // [segments + 1] first step of every segment, then all steps
  double* sampled_sum;         // [rows, sample_parts], or null without centre_rows
  float* shift;                // [side] subtracted from all elements of a row; or null, likewise
  double* partial;             // [splits, side + 1, side] products, then sums of the shifted rows
  double* joined;              // [side + 1, side]
  double* average;             // [rows] of the finite entries of a row, or null without mean_origin
  double* gram;                // [rows, rows]
  double* row_mean;            // [rows]
  std::int64_t rows;
  std::int64_t segments;
  std::int64_t columns;  // P
  std::int64_t side;     // rows, to whole tiles
  std::int64_t splits;   // runs of steps that are summed apart
  std::int64_t sample_parts;
  bool mean_origin;
  bool centre_rows;
  bool tf32;
};

// How a call is cut, where its arrays lie in the workspace, and the tables that go to its head: from shapes
// and dtypes alone.
struct GramPlan {
  bool in_double;
  int tiles;                          // of 16 rows in a warp: 1, 2 or 4; 0 for pairs of groups
  std::int64_t groups;                // of rows, when there are pairs
  std::int64_t pairs;                 // of groups, each with itself among them
  bool own_centroid;                  // found by a pass of its own, because no warp sees all rows
  std::vector<unsigned char> tables;  // what the workspace starts with
  std::int64_t workspace_bytes;
  std::vector<std::int64_t> centroid_offsets;  // [segments] in the workspace, in bytes, with own_centroid
  GramDevice device;  // pointers are offsets from the start of the workspace until `place`
};

// Checks the arguments as gram_cpu does. `args.gram` and `args.row_mean` are device memory.
Status plan_gram(const GramArgs& args, GramPlan& plan);

// Turns the offsets into addresses. `workspace` is aligned to 256 bytes.
void place_gram(unsigned char* workspace, GramPlan& plan);

}  // namespace mmfl
