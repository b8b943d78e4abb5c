// Runs the kernels of mix.cuh on the CPU as mix_launch.cu would on a GPU: a case from stdin, the outputs
// [R, P] as doubles to stdout.
#include "emulated_case.h"
#include "mix/mix.cuh"

namespace {

using mmfl::emulation::Order;
using mmfl::emulation::run_grid;

template <typename T, int kOutputs>
void run_tiles(const mmfl::MixDevice& args, std::int64_t tiles, Order order) {
  using Shared = mmfl::device::MixWeights<T, kOutputs>;
  const std::int64_t parts = (args.out_rows + kOutputs - 1) / kOutputs;
  run_grid<Shared>(tiles * parts, 1, mmfl::kMixThreads, order,
                   [&](Shared& shared) { mmfl::device::mix_tile<T, kOutputs>(args, shared); });
}

template <typename T>
void run(const mmfl::MixDevice& args, std::int64_t tiles, Order order) {
  if (args.out_rows == 1) return run_tiles<T, 1>(args, tiles, order);
  if (args.out_rows <= mmfl::kMixFew) return run_tiles<T, mmfl::kMixFew>(args, tiles, order);
  run_tiles<T, mmfl::kMixMany>(args, tiles, order);
}

}  // namespace

int main() {
  Case input;
  const bool centre_columns = input.number() != 0;
  const Order order = input.number() != 0 ? Order::kBackward : Order::kForward;
  const std::int64_t out_rows = input.number();
  const bool has_offset = input.number() != 0;
  const Case::Rows rows = input.rows();
  const std::vector<double> matrix = input.numbers(out_rows * rows.count);
  const std::vector<double> offset = input.numbers(has_offset ? rows.count : 0);

  std::vector<Bytes> memory;
  std::vector<mmfl::RowBlock> outputs;
  for (std::size_t s = 0; s < rows.widths.size(); ++s) {
    const mmfl::DType dtype = rows.blocks[s].dtype;
    memory.push_back(nan_filled(out_rows * rows.widths[s] * mmfl::size_of(dtype)));
    outputs.push_back({memory.back().get(), out_rows, rows.widths[s], 1, dtype});
  }
  mmfl::MixArgs args;
  args.blocks = rows.blocks.data();
  args.widths = rows.widths.data();
  args.outputs = outputs.data();
  args.matrix = matrix.data();
  args.row_offset = has_offset ? offset.data() : nullptr;
  args.grid_rows = 1;
  args.segments = static_cast<std::int64_t>(rows.widths.size());
  args.matrix_rows = out_rows;
  args.matrix_columns = rows.count;
  args.centre_columns = centre_columns;
  mmfl::MixPlan plan;
  if (mmfl::plan_mix(args, plan) != mmfl::Status::kOk) mmfl::emulation::fail("refused");
  const auto workspace = nan_filled(plan.workspace_bytes);
  mmfl::place_mix(workspace.get(), plan);
  std::memcpy(workspace.get(), plan.tables.data(), plan.tables.size());
  if (centre_columns)
    run_grid<mmfl::device::MixBlockSum>(
        1, 1, mmfl::kMixThreads, order,
        [&](mmfl::device::MixBlockSum& shared) { mmfl::device::mix_members(plan.device, shared); });
  run<float>(plan.device, plan.float_tiles, order);
  run<double>(plan.device, plan.double_tiles, order);

  std::vector<double> mixed;
  for (std::int64_t r = 0; r < out_rows; ++r)
    for (std::size_t s = 0; s < outputs.size(); ++s)
      for (std::int64_t p = 0; p < rows.widths[s]; ++p)
        mixed.push_back(mmfl::device::load_element<double>({outputs[s].data, 1, outputs[s].dtype},
                                                           r * outputs[s].row_stride + p));
  write_out(mixed);
  return 0;
}
