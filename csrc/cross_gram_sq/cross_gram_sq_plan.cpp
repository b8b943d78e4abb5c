#include "cross_gram_sq/cross_gram_sq_plan.h"

#include <algorithm>

#include "common/workspace.h"
#include "gram/gram_plan.h"

namespace mmfl {
namespace {

// Two blocks on each of 132 multiprocessors.
constexpr std::int64_t kBlocks = 264;
// A split shorter than this costs more to add up than it saves.
constexpr std::int64_t kShortestSplit = 1024;

std::int64_t pieces(std::int64_t count, std::int64_t size) { return (count + size - 1) / size; }

}  // namespace

Status plan_cross_gram_sq(const CrossGramSqArgs& args, CrossGramSqPlan& plan, std::int64_t held_bytes) {
  if (args.count < 0 || args.batch < 0 || args.rows < 0) return Status::kBadShape;
  if (args.count > 0 && args.blocks == nullptr) return Status::kNullPointer;
  if (!is_known(args.dtype)) return Status::kBadDtype;
  std::vector<std::int64_t> first_column(1, 0), first_panel(1, 0);
  std::int64_t widest = 0;
  for (std::int64_t i = 0; i < args.count; ++i) {
    const ViewBlock& block = args.blocks[i];
    if (block.views < 0 || block.columns < 0) return Status::kBadShape;
    if (args.batch * block.views * args.rows * block.columns > 0 && block.data == nullptr)
      return Status::kNullPointer;
    for (std::int64_t v = 0; v < block.views; ++v) {
      first_column.push_back(first_column.back() + block.columns);
      first_panel.push_back(first_panel.back() + pieces(block.columns, kCrossTile));
      widest = std::max(widest, block.columns);
    }
  }
  std::vector<View> views;
  for (std::int64_t b = 0; b < args.batch; ++b) {
    for (std::int64_t i = 0; i < args.count; ++i) {
      const ViewBlock& block = args.blocks[i];
      for (std::int64_t v = 0; v < block.views; ++v) {
        const std::int64_t offset = (b * block.batch_stride + v * block.view_stride) * size_of(args.dtype);
        const auto* data = static_cast<const char*>(block.data);
        views.push_back({data == nullptr ? nullptr : data + offset, block.row_stride, block.column_stride,
                         block.columns});
      }
    }
  }

  CrossGramSqDevice& device = plan.device;
  device = CrossGramSqDevice{};
  device.out = args.out;
  device.batch = args.batch;
  device.count = static_cast<std::int64_t>(first_column.size()) - 1;
  device.rows = args.rows;
  device.dtype = args.dtype;
  device.panels = first_panel.back();
  plan.in_double = args.dtype == DType::kFloat64;
  plan.tf32 = args.tf32 && !plan.in_double;
  const double n = static_cast<double>(args.rows), k = static_cast<double>(device.count);
  const double columns = static_cast<double>(first_column.back());
  plan.by_rows = n * n * columns + k * k * n * n / 2 <= n * columns * columns;

  const std::int64_t size = plan.in_double ? 8 : 4;
  const std::int64_t side = plan.by_rows ? pieces(args.rows, kCrossTile) : device.panels;
  device.tiles = side * (side + 1) / 2;
  const std::int64_t views_held = std::max<std::int64_t>(1, device.count);
  device.run =
      std::max<std::int64_t>(1, std::min(device.tiles, held_bytes / (views_held * kCrossTileSize * size)));
  device.runs = pieces(device.tiles, device.run);
  device.products = plan.by_rows ? device.count * device.run : args.batch * device.tiles;
  const std::int64_t depth = plan.by_rows ? widest : args.rows;
  device.splits = std::max<std::int64_t>(
      1, std::min(kBlocks / std::max<std::int64_t>(1, device.products), depth / kShortestSplit));

  WorkspaceLayout layout;
  device.views = layout.table(views);
  device.first_column = layout.table(first_column);
  device.first_panel = layout.table(first_panel);
  plan.tables = layout.image();
  const std::int64_t entries = args.batch * device.count;
  if (args.normalise_rows) device.scale = layout.array<unsigned char>(entries * args.rows * size);
  if (args.mean_columns) device.mean = layout.array<unsigned char>(args.batch * first_column.back() * size);
  if (device.splits > 1)
    device.partial = layout.array<double>(device.products * device.splits * kCrossTileSize);
  plan.gram_offset = plan.gram_bytes = 0;
  if (plan.by_rows) {
    device.held = layout.array<unsigned char>(device.count * device.run * kCrossTileSize * size);
    if (device.runs > 1) device.run_sums = layout.array<double>(device.runs * device.count * device.count);
    device.row_mean = layout.array<double>(device.count);
    GramPlan gram;
    const Status status =
        plan_gram(held_gram(plan, device.run).args(device.out, device.row_mean, plan.tf32), gram);
    if (status != Status::kOk) return status;
    plan.gram_bytes = gram.workspace_bytes;
    plan.gram_offset = static_cast<std::int64_t>(
        reinterpret_cast<std::uintptr_t>(layout.array<unsigned char>(plan.gram_bytes)));
  } else {
    device.tile_sums = layout.array<double>(args.batch * device.tiles);
  }
  plan.workspace_bytes = layout.bytes();
  return Status::kOk;
}

void place_cross_gram_sq(unsigned char* workspace, CrossGramSqPlan& plan) {
  CrossGramSqDevice& device = plan.device;
  place(workspace, device.views);
  place(workspace, device.first_column);
  place(workspace, device.first_panel);
  place(workspace, device.scale);
  place(workspace, device.mean);
  place(workspace, device.partial);
  place(workspace, device.tile_sums);
  place(workspace, device.held);
  place(workspace, device.run_sums);
  place(workspace, device.row_mean);
}

HeldGram held_gram(const CrossGramSqPlan& plan, std::int64_t tiles) {
  const CrossGramSqDevice& device = plan.device;
  const DType dtype = plan.in_double ? DType::kFloat64 : DType::kFloat32;
  return {{device.held, device.count, device.run * kCrossTileSize, 1, dtype}, tiles * kCrossTileSize};
}

GramArgs HeldGram::args(double* to, double* row_mean, bool tf32) const {
  GramArgs args{};
  args.blocks = &block;
  args.widths = &width;
  args.grid_rows = 1;
  args.segments = 1;
  args.tf32 = tf32;
  args.gram = to;
  args.row_mean = row_mean;
  return args;
}

}  // namespace mmfl
