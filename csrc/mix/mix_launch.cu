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
__global__ void __launch_bounds__(kMixThreads, 1) mix_tile_kernel(const __grid_constant__ MixDevice args) {
  __shared__ device::MixWeights<T, kOutputs> shared;
  device::mix_tile<T, kOutputs>(args, shared);
}

template <typename T>
void launch_tiles(const MixDevice& args, std::int64_t tiles, cudaStream_t stream) {
  if (tiles == 0) return;
  if (args.out_rows == 1) {
    mix_tile_kernel<T, 1><<<static_cast<unsigned>(tiles), kMixThreads, 0, stream>>>(args);
  } else {
    const std::int64_t parts = (args.out_rows + kMixOutputs - 1) / kMixOutputs;
    mix_tile_kernel<T, kMixOutputs><<<static_cast<unsigned>(tiles * parts), kMixThreads, 0, stream>>>(args);
  }
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
  launch_tiles<float>(plan.device, plan.float_tiles, stream);
  launch_tiles<double>(plan.device, plan.double_tiles, stream);
  return launch_status();
}

}  // namespace mmfl
