#include "mix/mix_plan.h"

#include "common/workspace.h"

namespace mmfl {

Status plan_mix(const MixArgs& args, MixPlan& plan) {
  RowTable table;
  const Status status = make_row_table(args.blocks, args.grid_rows, args.segments, args.widths, table);
  if (status != Status::kOk) return status;
  if (args.matrix_rows < 0 || args.matrix_columns != table.rows) return Status::kBadShape;
  if (table.rows > 0 && args.matrix_rows > 0 && args.matrix == nullptr) return Status::kNullPointer;

  std::vector<Span> spans;
  std::vector<RowBlock> outputs;
  std::vector<std::int64_t> widths, float_tiles(1, 0), double_tiles(1, 0);
  for (std::int64_t s = 0; s < args.segments; ++s) {
    const RowBlock& output = args.outputs[s];
    if (!is_known(output.dtype)) return Status::kBadDtype;
    if (output.rows != args.matrix_rows || output.stride != 1) return Status::kBadShape;
    if (output.data == nullptr && args.widths[s] > 0 && args.matrix_rows > 0) return Status::kNullPointer;
    for (std::int64_t k = 0; k < table.rows; ++k)
      spans.push_back(table.spans[static_cast<std::size_t>(k * args.segments + s)]);
    outputs.push_back(output);
    widths.push_back(args.widths[s]);
    const bool in_double = output.dtype == DType::kFloat64;
    const std::int64_t tile = kMixThreads * (in_double ? 2 : 4);
    const std::int64_t tiles = (args.widths[s] + tile - 1) / tile;
    float_tiles.push_back(float_tiles.back() + (in_double ? 0 : tiles));
    double_tiles.push_back(double_tiles.back() + (in_double ? tiles : 0));
  }

  plan.float_tiles = float_tiles.back();
  plan.double_tiles = double_tiles.back();
  MixDevice& device = plan.device;
  device.matrix = args.matrix;
  device.row_offset = args.row_offset;
  device.rows = table.rows;
  device.out_rows = args.matrix_rows;
  device.segments = args.segments;
  WorkspaceLayout layout;
  device.spans = layout.table(spans);
  device.outputs = layout.table(outputs);
  device.widths = layout.table(widths);
  device.float_tiles = layout.table(float_tiles);
  device.double_tiles = layout.table(double_tiles);
  plan.tables = layout.image();
  device.members = args.centre_columns ? layout.array<double>(table.rows + 1) : nullptr;
  plan.workspace_bytes = layout.bytes();
  return Status::kOk;
}

void place_mix(unsigned char* workspace, MixPlan& plan) {
  place(workspace, plan.device.spans);
  place(workspace, plan.device.outputs);
  place(workspace, plan.device.widths);
  place(workspace, plan.device.float_tiles);
  place(workspace, plan.device.double_tiles);
  place(workspace, plan.device.members);
}

}  // namespace mmfl
