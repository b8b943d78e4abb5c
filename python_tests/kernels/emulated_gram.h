// Runs the kernels of gram.cuh on the CPU as gram_launch.cu would on a GPU.
#pragma once

#include "emulated_case.h"
#include "gram/gram_panels.cuh"

namespace emulated_gram {

using mmfl::emulation::Order;
using mmfl::emulation::run_grid;
using BlockSum = mmfl::device::GramBlockSum;

struct Nothing {};

template <bool kDiagonal, bool kTf32>
void run_panels(const mmfl::GramDevice& args, std::int64_t pairs, Order order) {
  using Shared = mmfl::device::PanelShared<kDiagonal>;
  if (pairs > 0)
    run_grid<Shared>(pairs, args.splits, mmfl::kGramThreads, order,
                     [&](Shared& shared) { mmfl::device::gram_panels<kDiagonal, kTf32>(args, shared); });
}

template <typename T, bool kTf32>
void run_products(const mmfl::GramPlan& plan, Order order) {
  const mmfl::GramDevice& args = plan.device;
  const auto blocks = [](std::int64_t warps) { return (warps + mmfl::kGramWarps - 1) / mmfl::kGramWarps; };
  constexpr int kThreads = mmfl::kGramThreads;
  if constexpr (sizeof(T) == 4) {
    if (plan.tiles == 0) {
      run_panels<false, kTf32>(args, plan.pairs - plan.groups, order);
      return run_panels<true, kTf32>(args, plan.groups, order);
    }
  }
  if (plan.tiles == 0)
    return run_grid<Nothing>(blocks(plan.pairs), args.splits, kThreads, order,
                             [&](Nothing&) { mmfl::device::gram_pairs(args); });
  run_grid<mmfl::device::GramStages>(blocks(args.splits), 1, kThreads, order,
                                     [&](mmfl::device::GramStages& shared) {
                                       if (plan.tiles == 1)
                                         return mmfl::device::gram_rows<T, 1, kTf32>(args, shared);
                                       if (plan.tiles == 2)
                                         return mmfl::device::gram_rows<T, 2, kTf32>(args, shared);
                                       if constexpr (sizeof(T) == 4)
                                         mmfl::device::gram_rows<T, 4, kTf32>(args, shared);
                                     });
}

template <int kSlices>
void run_join(const mmfl::GramDevice& args, Order order) {
  using Sums = mmfl::device::JoinSums<kSlices>;
  const std::int64_t entries = args.side * (args.side + 1), size = mmfl::kJoinEntries<kSlices>;
  run_grid<Sums>((entries + size - 1) / size, 1, mmfl::kGramThreads, order,
                 [&](Sums& shared) { mmfl::device::gram_join(args, shared); });
}

template <typename T>
void run(const mmfl::GramPlan& plan, Order order) {
  const mmfl::GramDevice& args = plan.device;
  constexpr int kThreads = mmfl::kGramThreads;
  if (plan.own_centroid)
    run_grid<Nothing>((args.columns + kThreads - 1) / kThreads, 1, kThreads, order,
                      [&](Nothing&) { mmfl::device::gram_centroid<T>(args); });
  if (args.centre_rows) {
    run_grid<BlockSum>(args.rows * args.sample_parts, 1, kThreads, order,
                       [&](BlockSum& shared) { mmfl::device::gram_sample(args, shared); });
    run_grid<BlockSum>(1, 1, kThreads, order,
                       [&](BlockSum& shared) { mmfl::device::gram_shift(args, shared); });
  }
  if (sizeof(T) == 4 && args.tf32) {
    run_products<T, sizeof(T) == 4>(plan, order);
  } else {
    run_products<T, false>(plan, order);
  }
  if (args.splits > mmfl::kManySlices) {
    run_join<mmfl::kManySlices>(args, order);
  } else {
    run_join<mmfl::kFewSlices>(args, order);
  }
  if (args.mean_origin)
    run_grid<BlockSum>(args.rows, 1, kThreads, order,
                       [&](BlockSum& shared) { mmfl::device::gram_average(args, shared); });
  run_grid<BlockSum>(args.rows, 1, kThreads, order,
                     [&](BlockSum& shared) { mmfl::device::gram_finish(args, shared); });
}

// A whole call, with its own workspace.
inline void run(const mmfl::GramArgs& args, Order order) {
  mmfl::GramPlan plan;
  if (mmfl::plan_gram(args, plan) != mmfl::Status::kOk) mmfl::emulation::fail("refused");
  const auto workspace = nan_filled(plan.workspace_bytes);
  mmfl::place_gram(workspace.get(), plan);
  std::memcpy(workspace.get(), plan.tables.data(), plan.tables.size());
  if (plan.in_double) {
    run<double>(plan, order);
  } else {
    run<float>(plan, order);
  }
}

}  // namespace emulated_gram
