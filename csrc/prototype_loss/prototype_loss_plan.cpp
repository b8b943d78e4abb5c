#include "prototype_loss/prototype_loss_plan.h"

#include <algorithm>

#include "common/workspace.h"
#include "prototype_loss/prototype_loss_check.h"

namespace mmfl {
namespace {

// Terms of the other side that a block adds up in the compute type.
constexpr std::int64_t kLongestSplit = 4096;

std::int64_t pieces(std::int64_t count, std::int64_t size) { return (count + size - 1) / size; }

LossElements elements_of(const PrototypeLossArgs& args) {
  if (args.in_double) return LossElements::kDouble;
  if (args.features.dtype == args.prototypes.dtype) {
    if (args.features.dtype == DType::kBFloat16) return LossElements::kBFloat16;
    if (args.features.dtype == DType::kFloat16) return LossElements::kFloat16;
  }
  return args.tf32 ? LossElements::kTf32 : LossElements::kFloat;
}

std::int64_t group_rows_of(const PrototypeLossArgs& args) {
  return args.groups > 0 ? args.clients / args.groups * args.rows : 0;
}

// Columns of a slab.
std::int64_t slab_of(LossElements elements) {
  switch (elements) {
    case LossElements::kDouble:
      return 16;
    case LossElements::kFloat:
    case LossElements::kTf32:
      return 32;
    default:
      return 64;
  }
}

// Splits share the weights out between blocks. Should that leave multiprocessors without a block, chunks of
// the dimensions do the rest; each of them forms its weights again.
void cut(const PrototypeLossArgs& args, LossElements elements, std::int64_t own, std::int64_t others,
         std::int64_t blocks, LossGradientSide& side) {
  side.tiles = pieces(own, kLossRows);
  side.other_tiles = pieces(others, loss_others(args.in_double));
  const std::int64_t tiles = std::max<std::int64_t>(1, args.groups * side.tiles);
  side.splits = std::max(blocks / tiles, pieces(others, kLongestSplit));
  side.splits = std::max<std::int64_t>(1, std::min(side.splits, side.other_tiles));
  const std::int64_t slabs = std::max<std::int64_t>(1, pieces(args.dims, slab_of(elements)));
  const std::int64_t chunks = std::max<std::int64_t>(1, std::min(blocks / (tiles * side.splits), slabs));
  side.dims = pieces(slabs, chunks) * slab_of(elements);
  side.chunks = pieces(args.dims, side.dims);
  side.passes = pieces(side.dims, loss_pass(args.in_double));
  side.sums = args.groups * side.tiles * side.chunks;
}

}  // namespace

Status plan_prototype_loss(const PrototypeLossArgs& args, void* loss, void* log_sum, PrototypeLossPlan& plan,
                           std::int64_t blocks) {
  const Status status = check_prototype_loss(args);
  if (status != Status::kOk) return status;
  plan.elements = elements_of(args);
  PrototypeLossDevice& device = plan.device;
  device.args = args;
  device.group_rows = group_rows_of(args);
  device.row_tiles = pieces(device.group_rows, kLossRows);
  device.class_tiles = pieces(args.classes, loss_others(args.in_double));
  const std::int64_t tiles = std::max<std::int64_t>(1, args.groups * device.row_tiles);
  device.splits = std::max<std::int64_t>(1, std::min(blocks / tiles, device.class_tiles));
  device.loss = loss;
  device.log_sum = log_sum;

  WorkspaceLayout layout;
  const std::int64_t count = device.splits > 1 ? device.splits * args.clients * args.rows : 0;
  const std::int64_t size = args.in_double ? 8 : 4;
  device.peak = count > 0 ? layout.array<unsigned char>(count * size) : nullptr;
  device.target = count > 0 ? layout.array<unsigned char>(count * size) : nullptr;
  device.others = count > 0 ? layout.array<double>(count) : nullptr;
  plan.workspace_bytes = layout.bytes();
  return Status::kOk;
}

void place_prototype_loss(unsigned char* workspace, PrototypeLossPlan& plan) {
  place(workspace, plan.device.peak);
  place(workspace, plan.device.target);
  place(workspace, plan.device.others);
}

Status plan_prototype_loss_backward(const PrototypeLossArgs& args, const PrototypeLossGradients& gradients,
                                    PrototypeLossBackwardPlan& plan, std::int64_t blocks) {
  const Status status = check_prototype_loss(args);
  if (status != Status::kOk) return status;
  plan.elements = elements_of(args);
  PrototypeLossBackwardDevice& device = plan.device;
  device.args = args;
  device.gradients = gradients;
  device.group_rows = group_rows_of(args);
  // The two sides run side by side.
  cut(args, plan.elements, device.group_rows, args.classes, blocks / 2, device.features);
  cut(args, plan.elements, args.classes, device.group_rows, blocks / 2, device.prototypes);

  WorkspaceLayout layout;
  const std::int64_t size = args.in_double ? 8 : 4;
  const std::int64_t state = args.in_double ? sizeof(LossRowState<double>) : sizeof(LossRowState<float>);
  device.rows = layout.array<unsigned char>(args.clients * args.rows * state);
  device.inverse = layout.array<unsigned char>(args.groups * args.classes * size);
  for (LossGradientSide* side : {&device.features, &device.prototypes}) {
    const bool at_once = side->splits == 1 && side->other_tiles <= kLossRunTiles;
    const std::int64_t partials = at_once ? 0 : side->sums * side->splits * kLossRows;
    side->partial = partials > 0 ? layout.array<unsigned char>(partials * side->dims * size) : nullptr;
    side->along = partials > 0 ? layout.array<double>(partials) : nullptr;
    side->arrived = partials > 0 ? layout.array<unsigned>(side->sums * side->passes) : nullptr;
  }
  plan.workspace_bytes = layout.bytes();
  return Status::kOk;
}

void place_prototype_loss_backward(unsigned char* workspace, PrototypeLossBackwardPlan& plan) {
  PrototypeLossBackwardDevice& device = plan.device;
  place(workspace, device.rows);
  place(workspace, device.inverse);
  for (LossGradientSide* side : {&device.features, &device.prototypes}) {
    place(workspace, side->partial);
    place(workspace, side->along);
    place(workspace, side->arrived);
  }
}

}  // namespace mmfl
