#include <cuda_runtime.h>

#include "common/cuda_launch.h"
#include "mix/mix.cuh"
#include "mix/mix_cuda.h"

namespace mmfl {
namespace {

__global__ void mix_members_kernel(const __grid_constant__ MixDevice args) {
  __shared__ device::MixBlockSum shared;
  device::mix_members(args, shared);
}

template <typename T, int kOutputs>
__global__ void __launch_bounds__(kMixThreads, kOutputs > kMixFew ? 1 : 2)
    mix_tile_kernel(const __grid_constant__ MixDevice args) {
  __shared__ device::MixWeights<T, kOutputs> shared;
  device::mix_tile<T, kOutputs>(args, shared);
}

template <typename T, int kOutputs>
void launch_tiles(const MixDevice& args, std::int64_t tiles, cudaStream_t stream) {
  const std::int64_t parts = (args.out_rows + kOutputs - 1) / kOutputs;
  mix_tile_kernel<T, kOutputs><<<static_cast<unsigned>(tiles * parts), kMixThreads, 0, stream>>>(args);
}

template <typename T>
void launch(const MixDevice& args, std::int64_t tiles, cudaStream_t stream) {
  if (tiles == 0) return;
  if (args.out_rows == 1) return launch_tiles<T, 1>(args, tiles, stream);
  if (args.out_rows <= kMixFew) return launch_tiles<T, kMixFew>(args, tiles, stream);
  launch_tiles<T, kMixMany>(args, tiles, stream);
}

}  // namespace

Status mix_cuda(const MixArgs& args, const CudaCall& call) {
  MixPlan plan;
  const Status status = plan_mix(args, plan);
  if (status != Status::kOk || args.matrix_rows == 0 || plan.float_tiles + plan.double_tiles == 0)
    return status;
  if (call.workspace == nullptr) return Status::kNullPointer;
  if (call.workspace_bytes < plan.workspace_bytes) return Status::kBadShape;
  const DeviceGuard guard(call.device);
  if (guard.status() != Status::kOk) return guard.status();
  auto* stream = static_cast<cudaStream_t>(call.stream);
  place_mix(static_cast<unsigned char*>(call.workspace), plan);
  launch_upload(plan.tables, call.workspace, stream);
  if (args.centre_columns) mix_members_kernel<<<1, kMixThreads, 0, stream>>>(plan.device);
  launch<float>(plan.device, plan.float_tiles, stream);
  launch<double>(plan.device, plan.double_tiles, stream);
  return launch_status();
}

}  // namespace mmfl
