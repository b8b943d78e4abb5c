#include <cuda_runtime.h>

#include <algorithm>

#include "common/cuda_launch.h"
#include "cross_gram_sq/cross_gram_sq.cuh"
#include "cross_gram_sq/cross_gram_sq_cuda.h"
#include "gram/gram_cuda.h"

namespace mmfl {
namespace {

template <typename T>
__global__ void cross_gram_sq_scale_kernel(const __grid_constant__ CrossGramSqDevice call) {
  device::cross_gram_sq_scale<T>(call);
}

template <typename T>
__global__ void cross_gram_sq_mean_kernel(const __grid_constant__ CrossGramSqDevice call) {
  __shared__ device::ColumnSums shared;
  device::cross_gram_sq_mean<T>(call, shared);
}

template <typename T, bool kByRows, bool kTf32>
__global__ void __launch_bounds__(kCrossThreads, 2)
    cross_gram_sq_tile_kernel(const __grid_constant__ CrossGramSqDevice call) {
  extern __shared__ uint4 shared[];
  device::cross_gram_sq_tile<T, kByRows, kTf32>(call, *reinterpret_cast<device::CrossShared<T>*>(shared));
}

template <typename T, bool kByRows>
__global__ void __launch_bounds__(kCrossThreads)
    cross_gram_sq_join_kernel(const __grid_constant__ CrossGramSqDevice call) {
  __shared__ device::CrossJoinShared shared;
  device::cross_gram_sq_join<T, kByRows>(call, shared);
}

__global__ void cross_gram_sq_pair_kernel(const __grid_constant__ CrossGramSqDevice call) {
  device::cross_gram_sq_pair(call);
}

__global__ void cross_gram_sq_add_kernel(const __grid_constant__ CrossGramSqDevice call) {
  device::cross_gram_sq_add(call);
}

unsigned blocks_of(std::int64_t count, std::int64_t size) {
  return static_cast<unsigned>((count + size - 1) / size);
}

template <typename T, bool kByRows, bool kTf32>
Status launch_tiles(const CrossGramSqDevice& call, cudaStream_t stream) {
  const auto products = static_cast<unsigned>(call.products), splits = static_cast<unsigned>(call.splits);
  const auto kernel = cross_gram_sq_tile_kernel<T, kByRows, kTf32>;
  constexpr int kBytes = sizeof(device::CrossShared<T>);
  const Status status = allow_shared_memory(kernel, kBytes);
  if (status != Status::kOk) return status;
  kernel<<<products * splits, kCrossThreads, kBytes, stream>>>(call);
  if (splits > 1) cross_gram_sq_join_kernel<T, kByRows><<<products, kCrossThreads, 0, stream>>>(call);
  return Status::kOk;
}

template <typename T, bool kTf32>
Status launch(const CrossGramSqPlan& plan, const CudaCall& where, cudaStream_t stream) {
  CrossGramSqDevice call = plan.device;
  const std::int64_t entries = call.count * call.count;
  if (call.scale != nullptr)
    cross_gram_sq_scale_kernel<T>
        <<<blocks_of(call.batch * call.count * call.rows, device::kCrossWarps), kCrossThreads, 0, stream>>>(
            call);
  if (call.mean != nullptr)
    cross_gram_sq_mean_kernel<T>
        <<<static_cast<unsigned>(2 * call.batch * call.panels), kCrossThreads, 0, stream>>>(call);
  if (!plan.by_rows) {
    const Status status = launch_tiles<T, false, kTf32>(call, stream);
    if (status != Status::kOk) return status;
    cross_gram_sq_pair_kernel<<<blocks_of(call.batch * entries, device::kCrossWarps), kCrossThreads, 0,
                                stream>>>(call);
    return launch_status();
  }
  const CudaCall gram{where.device, where.stream, static_cast<char*>(where.workspace) + plan.gram_offset,
                      plan.gram_bytes};
  for (call.entry = 0; call.entry < call.batch; ++call.entry) {
    for (std::int64_t run = 0; run < call.runs; ++run) {
      call.first_tile = run * call.run;
      Status status = launch_tiles<T, true, kTf32>(call, stream);
      if (status != Status::kOk) return status;
      const HeldGram held = held_gram(plan, std::min(call.run, call.tiles - call.first_tile));
      double* to = call.runs > 1 ? call.run_sums + run * entries : call.out + call.entry * entries;
      status = gram_cuda(held.args(to, call.row_mean, plan.tf32), gram);
      if (status != Status::kOk) return status;
    }
    if (call.runs > 1)
      cross_gram_sq_add_kernel<<<blocks_of(entries, kCrossThreads), kCrossThreads, 0, stream>>>(call);
  }
  return launch_status();
}

}  // namespace

Status cross_gram_sq_cuda(const CrossGramSqArgs& args, const CudaCall& call) {
  CrossGramSqPlan plan;
  const Status status = plan_cross_gram_sq(args, plan);
  if (status != Status::kOk || args.batch * plan.device.count == 0) return status;
  if (args.out == nullptr || call.workspace == nullptr) return Status::kNullPointer;
  if (call.workspace_bytes < plan.workspace_bytes) return Status::kBadShape;
  const DeviceGuard guard(call.device);
  if (guard.status() != Status::kOk) return guard.status();
  auto* stream = static_cast<cudaStream_t>(call.stream);
  if (plan.device.rows == 0 || plan.device.panels == 0) {
    const auto entries = static_cast<std::size_t>(args.batch * plan.device.count * plan.device.count);
    cudaMemsetAsync(args.out, 0, entries * sizeof(double), stream);
    return launch_status();
  }
  place_cross_gram_sq(static_cast<unsigned char*>(call.workspace), plan);
  launch_upload(plan.tables, call.workspace, stream);
  if (plan.in_double) return launch<double, false>(plan, call, stream);
  if (plan.tf32) return launch<float, true>(plan, call, stream);
  return launch<float, false>(plan, call, stream);
}

}  // namespace mmfl
