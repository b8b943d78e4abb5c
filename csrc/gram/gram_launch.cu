#include <cuda_runtime.h>

#include "common/cuda_launch.h"
#include "gram/gram.cuh"
#include "gram/gram_cuda.h"
#include "gram/gram_panels.cuh"

namespace mmfl {
namespace {

template <typename T, int kTiles, bool kTf32>
__global__ void __launch_bounds__(kGramThreads, kTiles == 1 ? 2 : 1)
    gram_rows_kernel(const __grid_constant__ GramDevice args) {
  extern __shared__ uint4 shared[];
  device::gram_rows<T, kTiles, kTf32>(args, *reinterpret_cast<device::GramStages*>(shared));
}

template <bool kDiagonal, bool kTf32>
__global__ void __launch_bounds__(kGramThreads, 1)
    gram_panels_kernel(const __grid_constant__ GramDevice args) {
  extern __shared__ uint4 shared[];
  device::gram_panels<kDiagonal, kTf32>(args, *reinterpret_cast<device::PanelShared<kDiagonal>*>(shared));
}

__global__ void __launch_bounds__(kGramThreads, 1)
    gram_pairs_kernel(const __grid_constant__ GramDevice args) {
  device::gram_pairs(args);
}

template <typename T>
__global__ void gram_centroid_kernel(const __grid_constant__ GramDevice args) {
  device::gram_centroid<T>(args);
}

__global__ void gram_sample_kernel(const __grid_constant__ GramDevice args) {
  __shared__ device::GramBlockSum shared;
  device::gram_sample(args, shared);
}

__global__ void gram_shift_kernel(const __grid_constant__ GramDevice args) {
  __shared__ device::GramBlockSum shared;
  device::gram_shift(args, shared);
}

template <int kSlices>
__global__ void gram_join_kernel(const __grid_constant__ GramDevice args) {
  __shared__ device::JoinSums<kSlices> shared;
  device::gram_join(args, shared);
}

__global__ void gram_average_kernel(const __grid_constant__ GramDevice args) {
  __shared__ device::GramBlockSum shared;
  device::gram_average(args, shared);
}

__global__ void gram_finish_kernel(const __grid_constant__ GramDevice args) {
  __shared__ device::GramBlockSum shared;
  device::gram_finish(args, shared);
}

template <typename T, int kTiles, bool kTf32>
Status launch_rows(const GramDevice& args, unsigned blocks, cudaStream_t stream) {
  const auto kernel = gram_rows_kernel<T, kTiles, kTf32>;
  constexpr int kBytes = sizeof(device::GramStages);
  const Status status = allow_shared_memory(kernel, kBytes);
  if (status == Status::kOk) kernel<<<blocks, kGramThreads, kBytes, stream>>>(args);
  return status;
}

template <bool kDiagonal, bool kTf32>
Status launch_panels(const GramDevice& args, std::int64_t pairs, cudaStream_t stream) {
  const auto kernel = gram_panels_kernel<kDiagonal, kTf32>;
  constexpr int kBytes = sizeof(device::PanelShared<kDiagonal>);
  const Status status = allow_shared_memory(kernel, kBytes);
  if (status == Status::kOk && pairs > 0)
    kernel<<<dim3(static_cast<unsigned>(pairs), static_cast<unsigned>(args.splits)), kGramThreads, kBytes,
             stream>>>(args);
  return status;
}

template <typename T, bool kTf32>
Status launch_products(const GramPlan& plan, cudaStream_t stream) {
  const GramDevice& args = plan.device;
  const auto blocks = [](std::int64_t warps) {
    return static_cast<unsigned>((warps + kGramWarps - 1) / kGramWarps);
  };
  switch (plan.tiles) {
    case 0:
      if constexpr (sizeof(T) == 4) {
        const Status status = launch_panels<false, kTf32>(args, plan.pairs - plan.groups, stream);
        return status == Status::kOk ? launch_panels<true, kTf32>(args, plan.groups, stream) : status;
      } else {
        gram_pairs_kernel<<<dim3(blocks(plan.pairs), static_cast<unsigned>(args.splits)), kGramThreads, 0,
                            stream>>>(args);
        return Status::kOk;
      }
    case 1:
      return launch_rows<T, 1, kTf32>(args, blocks(args.splits), stream);
    case 2:
      return launch_rows<T, 2, kTf32>(args, blocks(args.splits), stream);
    default:
      // plan_gram gives 64 rows of doubles to pairs: their products do not fit the registers of a warp.
      if constexpr (sizeof(T) == 4) return launch_rows<T, 4, kTf32>(args, blocks(args.splits), stream);
      return Status::kBadShape;
  }
}

template <int kSlices>
void launch_join(const GramDevice& args, cudaStream_t stream) {
  const std::int64_t entries = args.side * (args.side + 1), size = kJoinEntries<kSlices>;
  gram_join_kernel<kSlices>
      <<<static_cast<unsigned>((entries + size - 1) / size), kGramThreads, 0, stream>>>(args);
}

template <typename T>
Status launch_gram(const GramPlan& plan, cudaStream_t stream) {
  const GramDevice& args = plan.device;
  const auto rows = static_cast<unsigned>(args.rows);
  if (plan.own_centroid) {
    const std::int64_t blocks = (args.columns + kGramThreads - 1) / kGramThreads;
    gram_centroid_kernel<T><<<static_cast<unsigned>(blocks), kGramThreads, 0, stream>>>(args);
  }
  if (args.centre_rows) {
    gram_sample_kernel<<<rows* static_cast<unsigned>(args.sample_parts), kGramThreads, 0, stream>>>(args);
    gram_shift_kernel<<<1, kGramThreads, 0, stream>>>(args);
  }
  const Status status = sizeof(T) == 4 && args.tf32 ? launch_products<T, sizeof(T) == 4>(plan, stream)
                                                    : launch_products<T, false>(plan, stream);
  if (status != Status::kOk) return status;
  if (args.splits > kManySlices) {
    launch_join<kManySlices>(args, stream);
  } else {
    launch_join<kFewSlices>(args, stream);
  }
  if (args.mean_origin) gram_average_kernel<<<rows, kGramThreads, 0, stream>>>(args);
  gram_finish_kernel<<<rows, kGramThreads, 0, stream>>>(args);
  return launch_status();
}

}  // namespace

Status gram_cuda(const GramArgs& args, const CudaCall& call) {
  GramPlan plan;
  const Status status = plan_gram(args, plan);
  if (status != Status::kOk || plan.device.rows == 0) return status;
  if (args.gram == nullptr || args.row_mean == nullptr || call.workspace == nullptr)
    return Status::kNullPointer;
  if (call.workspace_bytes < plan.workspace_bytes) return Status::kBadShape;
  const DeviceGuard guard(call.device);
  if (guard.status() != Status::kOk) return guard.status();
  auto* stream = static_cast<cudaStream_t>(call.stream);
  if (plan.device.columns == 0) {
    const auto rows = static_cast<std::size_t>(plan.device.rows);
    cudaMemsetAsync(args.gram, 0, rows * rows * sizeof(double), stream);
    cudaMemsetAsync(args.row_mean, 0, rows * sizeof(double), stream);
    return launch_status();
  }
  place_gram(static_cast<unsigned char*>(call.workspace), plan);
  launch_upload(plan.tables, call.workspace, stream);
  return plan.in_double ? launch_gram<double>(plan, stream) : launch_gram<float>(plan, stream);
}

}  // namespace mmfl
