#include "gram/gram_plan.h"

#include <algorithm>

#include "common/workspace.h"

namespace mmfl {
namespace {

constexpr std::int64_t kMultiprocessors = 132;
// Warps of one wave on them: 8 on each while a warp's products fill the registers, else 16.
constexpr std::int64_t kSplitsOfLargeTiles = kMultiprocessors * kGramWarps;
constexpr std::int64_t kSplitsOfSmallTiles = 2 * kSplitsOfLargeTiles;
constexpr std::int64_t kPartialBytes = std::int64_t{80} << 20;
// A split shorter than this costs more to add up than it saves.
constexpr std::int64_t kShortestSplit = 4, kShortestSplitOfPanels = 8;
// Elements that a thread of the sample adds up.
constexpr std::int64_t kSampledByThread = 4;

// A block of panels fills a multiprocessor: one wave of those that multiply different groups, or of the only
// group there is.
std::int64_t splits_of_panels(const GramPlan& plan) {
  return std::max<std::int64_t>(1, kMultiprocessors / std::max<std::int64_t>(1, plan.pairs - plan.groups));
}

}  // namespace

Status plan_gram(const GramArgs& args, GramPlan& plan) {
  RowTable table, origin;
  Status status = make_row_table(args.blocks, args.grid_rows, args.segments, args.widths, table);
  if (status != Status::kOk) return status;
  if (args.origin != nullptr) {
    status = make_row_table(args.origin, 1, args.segments, args.widths, origin);
    if (status != Status::kOk) return status;
    if (origin.rows != 1 || args.mean_origin) return Status::kBadShape;
  }

  const std::int64_t rows = table.rows;
  plan.in_double = std::any_of(table.spans.begin(), table.spans.end(),
                               [](const Span& span) { return span.dtype == DType::kFloat64; });
  plan.tiles = rows <= 16 ? 1 : rows <= 32 ? 2 : rows <= 64 && !plan.in_double ? 4 : 0;
  const std::int64_t group = plan.in_double ? kGramGroup : kPanelGroup;
  plan.groups = plan.tiles == 0 ? (rows + group - 1) / group : 0;
  plan.pairs = plan.groups * (plan.groups + 1) / 2;
  plan.own_centroid = args.mean_origin && plan.tiles == 0;

  // A quad of lanes reads 64 bytes of a row in the compute type, four, two or one times before it multiplies.
  const std::int64_t step = (plan.in_double ? 8 : 16) * (plan.tiles == 1 ? 4 : plan.tiles == 2 ? 2 : 1);
  std::vector<std::int64_t> starts(1, 0), steps(1, 0);
  for (std::int64_t s = 0; s < args.segments; ++s) {
    starts.push_back(starts.back() + args.widths[s]);
    steps.push_back(steps.back() + (args.widths[s] + step - 1) / step);
  }
  GramDevice& device = plan.device;
  device.rows = rows;
  device.segments = args.segments;
  device.columns = starts.back();
  device.side = plan.tiles > 0 ? 16 * plan.tiles : group * plan.groups;
  // In the place of rows that do not exist the first one is read; nobody asks for their products.
  std::vector<Span> spans;
  for (std::int64_t s = 0; s < args.segments; ++s)
    for (std::int64_t k = 0; k < (rows > 0 ? device.side : 0); ++k)
      spans.push_back(table.spans[static_cast<std::size_t>((k < rows ? k : 0) * args.segments + s)]);
  const bool in_panels = plan.tiles == 0 && !plan.in_double;
  const std::int64_t most = in_panels        ? splits_of_panels(plan)
                            : plan.tiles > 1 ? kSplitsOfLargeTiles
                                             : kSplitsOfSmallTiles;
  const std::int64_t one = device.side * (device.side + 1) * 8;
  device.splits = std::max<std::int64_t>(
      1, std::min({most, one > 0 ? kPartialBytes / one : 1,
                   steps.back() / (in_panels ? kShortestSplitOfPanels : kShortestSplit)}));
  const std::int64_t sampled = std::min(device.columns, kGramSampled),
                     share = kSampledByThread * kGramThreads;
  device.sample_parts = std::max<std::int64_t>(1, (sampled + share - 1) / share);
  device.mean_origin = args.mean_origin;
  device.centre_rows = args.centre_rows;
  device.tf32 = args.tf32;
  device.gram = args.gram;
  device.row_mean = args.row_mean;

  WorkspaceLayout layout;
  device.spans = layout.table(spans);
  device.starts = layout.table(starts);
  device.steps = layout.table(steps);
  device.origin = nullptr;
  if (args.origin != nullptr) {
    device.origin = layout.table(origin.spans);
  } else if (plan.own_centroid) {
    device.origin = layout.table(std::vector<Span>(static_cast<std::size_t>(args.segments)));
  }
  plan.tables = layout.image();
  const std::int64_t size = plan.in_double ? 8 : 4;
  if (plan.own_centroid)
    for (std::int64_t s = 0; s < args.segments; ++s)
      plan.centroid_offsets.push_back(static_cast<std::int64_t>(
          reinterpret_cast<std::uintptr_t>(layout.array<unsigned char>(args.widths[s] * size))));
  device.sampled_sum = args.centre_rows ? layout.array<double>(rows * device.sample_parts) : nullptr;
  device.shift = args.centre_rows ? layout.array<float>(device.side) : nullptr;
  device.partial = layout.array<double>(device.splits * device.side * (device.side + 1));
  device.joined = layout.array<double>(device.side * (device.side + 1));
  device.average = args.mean_origin ? layout.array<double>(rows) : nullptr;
  plan.workspace_bytes = layout.bytes();
  return Status::kOk;
}

void place_gram(unsigned char* workspace, GramPlan& plan) {
  GramDevice& device = plan.device;
  if (plan.own_centroid) {
    // The table of the centroid holds addresses of the workspace itself.
    const auto table = reinterpret_cast<std::uintptr_t>(device.origin);
    const DType dtype = plan.in_double ? DType::kFloat64 : DType::kFloat32;
    for (std::size_t s = 0; s < plan.centroid_offsets.size(); ++s) {
      const Span span{workspace + plan.centroid_offsets[s], 1, dtype};
      std::memcpy(plan.tables.data() + table + s * sizeof(Span), &span, sizeof span);
    }
  }
  place(workspace, device.spans);
  place(workspace, device.starts);
  place(workspace, device.steps);
  place(workspace, device.origin);
  place(workspace, device.sampled_sum);
  place(workspace, device.shift);
  place(workspace, device.partial);
  place(workspace, device.joined);
  place(workspace, device.average);
}

}  // namespace mmfl
