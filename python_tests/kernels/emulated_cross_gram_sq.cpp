// Runs the kernels of cross_gram_sq.cuh on the CPU as cross_gram_sq_launch.cu would on a GPU: a case from
// stdin, the result [B, K, K] to stdout.
#include <algorithm>

#include "cross_gram_sq/cross_gram_sq.cuh"
#include "emulated_gram.h"

namespace {

using mmfl::emulation::Order;
using mmfl::emulation::run_grid;

struct Nothing {};
constexpr int kThreads = mmfl::kCrossThreads;
constexpr int kWarps = mmfl::device::kCrossWarps;

std::int64_t pieces(std::int64_t count, std::int64_t size) { return (count + size - 1) / size; }

template <typename T, bool kByRows, bool kTf32>
void run_tiles(const mmfl::CrossGramSqDevice& call, Order order) {
  using Shared = mmfl::device::CrossShared<T>;
  using JoinShared = mmfl::device::CrossJoinShared;
  run_grid<Shared>(call.products * call.splits, 1, kThreads, order, [&](Shared& shared) {
    mmfl::device::cross_gram_sq_tile<T, kByRows, kTf32>(call, shared);
  });
  if (call.splits > 1)
    run_grid<JoinShared>(call.products, 1, kThreads, order, [&](JoinShared& shared) {
      mmfl::device::cross_gram_sq_join<T, kByRows>(call, shared);
    });
}

template <typename T, bool kTf32>
void run(const mmfl::CrossGramSqPlan& plan, Order order) {
  using Means = mmfl::device::ColumnSums;
  mmfl::CrossGramSqDevice call = plan.device;
  const std::int64_t entries = call.count * call.count;
  if (call.scale != nullptr)
    run_grid<Nothing>(pieces(call.batch * call.count * call.rows, kWarps), 1, kThreads, order,
                      [&](Nothing&) { mmfl::device::cross_gram_sq_scale<T>(call); });
  if (call.mean != nullptr)
    run_grid<Means>(2 * call.batch * call.panels, 1, kThreads, order,
                    [&](Means& shared) { mmfl::device::cross_gram_sq_mean<T>(call, shared); });
  if (!plan.by_rows) {
    run_tiles<T, false, kTf32>(call, order);
    run_grid<Nothing>(pieces(call.batch * entries, kWarps), 1, kThreads, order,
                      [&](Nothing&) { mmfl::device::cross_gram_sq_pair(call); });
    return;
  }
  for (call.entry = 0; call.entry < call.batch; ++call.entry) {
    for (std::int64_t run = 0; run < call.runs; ++run) {
      call.first_tile = run * call.run;
      run_tiles<T, true, kTf32>(call, order);
      const mmfl::HeldGram held = mmfl::held_gram(plan, std::min(call.run, call.tiles - call.first_tile));
      double* to = call.runs > 1 ? call.run_sums + run * entries : call.out + call.entry * entries;
      emulated_gram::run(held.args(to, call.row_mean, plan.tf32), order);
    }
    if (call.runs > 1)
      run_grid<Nothing>(pieces(entries, kThreads), 1, kThreads, order,
                        [&](Nothing&) { mmfl::device::cross_gram_sq_add(call); });
  }
}

}  // namespace

int main() {
  Case input;
  const Order order = input.number() != 0 ? Order::kBackward : Order::kForward;
  mmfl::CrossGramSqArgs args;
  args.mean_columns = input.number() != 0;
  args.normalise_rows = input.number() != 0;
  args.tf32 = input.number() != 0;
  const std::int64_t held_bytes = input.number();
  args.batch = input.number();
  args.rows = input.number();
  args.count = input.number();
  args.threads = 1;
  std::vector<mmfl::ViewBlock> blocks;
  std::vector<Case::Tensor> tensors;
  std::int64_t views = 0;
  for (std::int64_t i = 0; i < args.count; ++i) {
    const std::int64_t count = input.number(), columns = input.number();
    tensors.push_back(input.tensor());
    const Case::Tensor& tensor = tensors.back();
    args.dtype = tensor.dtype;
    blocks.push_back({tensor.data, tensor.strides[0], count, tensor.strides[1], tensor.strides[2],
                      tensor.strides[3], columns});
    views += count;
  }
  args.blocks = blocks.data();
  std::vector<double> out(static_cast<std::size_t>(args.batch * views * views), NAN);
  args.out = out.data();

  mmfl::CrossGramSqPlan plan;
  if (mmfl::plan_cross_gram_sq(args, plan, held_bytes) != mmfl::Status::kOk) mmfl::emulation::fail("refused");
  const Bytes workspace = nan_filled(plan.workspace_bytes);
  mmfl::place_cross_gram_sq(workspace.get(), plan);
  std::memcpy(workspace.get(), plan.tables.data(), plan.tables.size());
  if (plan.in_double) {
    run<double, false>(plan, order);
  } else if (plan.tf32) {
    run<float, true>(plan, order);
  } else {
    run<float, false>(plan, order);
  }
  write_out(out);
  return 0;
}
