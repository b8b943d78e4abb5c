#include <cuda_runtime.h>

#include "common/cuda_launch.h"
#include "prototype_loss/prototype_loss.cuh"
#include "prototype_loss/prototype_loss_backward.cuh"
#include "prototype_loss/prototype_loss_cuda.h"

namespace mmfl {
namespace {

template <typename E, bool kTf32>
__global__ void __launch_bounds__(kLossThreads, 2)
    prototype_loss_kernel(const __grid_constant__ PrototypeLossDevice call) {
  __shared__ device::LossShared<E> shared;
  device::prototype_loss<E, kTf32>(call, shared);
}

template <typename T>
__global__ void prototype_loss_join_kernel(const __grid_constant__ PrototypeLossDevice call) {
  device::prototype_loss_join<T>(call);
}

template <typename T>
__global__ void prototype_loss_describe_kernel(const __grid_constant__ PrototypeLossBackwardDevice call) {
  device::prototype_loss_describe<T>(call);
}

template <typename E, bool kTf32>
__global__ void __launch_bounds__(kLossThreads, 2)
    prototype_loss_backward_kernel(const __grid_constant__ PrototypeLossBackwardDevice call) {
  extern __shared__ uint4 shared[];
  device::prototype_loss_backward<E, kTf32>(call, *reinterpret_cast<device::LossGradientShared<E>*>(shared));
}

unsigned blocks_of(std::int64_t count, std::int64_t size) {
  return static_cast<unsigned>((count + size - 1) / size);
}

template <typename E, bool kTf32>
void launch_forward(const PrototypeLossDevice& call, cudaStream_t stream) {
  const std::int64_t blocks = call.args.groups * call.row_tiles * call.splits;
  prototype_loss_kernel<E, kTf32><<<static_cast<unsigned>(blocks), kLossThreads, 0, stream>>>(call);
  if (call.splits == 1) return;
  const unsigned joins = blocks_of(call.args.clients * call.args.rows, kLossThreads);
  prototype_loss_join_kernel<device::Compute<E>><<<joins, kLossThreads, 0, stream>>>(call);
}

template <typename E, bool kTf32>
Status launch_backward(const PrototypeLossBackwardPlan& plan, cudaStream_t stream) {
  const PrototypeLossBackwardDevice& call = plan.device;
  const auto kernel = prototype_loss_backward_kernel<E, kTf32>;
  constexpr int kBytes = sizeof(device::LossGradientShared<E>);
  const Status status = allow_shared_memory(kernel, kBytes);
  if (status != Status::kOk) return status;
  // A warp for each row of features and each prototype.
  const PrototypeLossArgs& args = call.args;
  const unsigned warps = blocks_of(args.clients * args.rows + args.groups * args.classes, device::kLossWarps);
  prototype_loss_describe_kernel<device::Compute<E>><<<warps, kLossThreads, 0, stream>>>(call);
  const auto blocks = static_cast<unsigned>(call.features.sums * call.features.splits +
                                            call.prototypes.sums * call.prototypes.splits);
  kernel<<<blocks, kLossThreads, kBytes, stream>>>(call);
  return launch_status();
}

}  // namespace

Status prototype_loss_cuda(const PrototypeLossArgs& args, void* loss, void* log_sum, const CudaCall& call) {
  PrototypeLossPlan plan;
  const Status status = plan_prototype_loss(args, loss, log_sum, plan);
  if (status != Status::kOk || args.clients * args.rows == 0) return status;
  if (loss == nullptr || log_sum == nullptr || call.workspace == nullptr) return Status::kNullPointer;
  if (call.workspace_bytes < plan.workspace_bytes) return Status::kBadShape;
  const DeviceGuard guard(call.device);
  if (guard.status() != Status::kOk) return guard.status();
  auto* stream = static_cast<cudaStream_t>(call.stream);
  place_prototype_loss(static_cast<unsigned char*>(call.workspace), plan);
  switch (plan.elements) {
    case LossElements::kDouble:
      launch_forward<double, false>(plan.device, stream);
      break;
    case LossElements::kFloat:
      launch_forward<float, false>(plan.device, stream);
      break;
    case LossElements::kTf32:
      launch_forward<float, true>(plan.device, stream);
      break;
    case LossElements::kBFloat16:
      launch_forward<device::BFloat16, true>(plan.device, stream);
      break;
    case LossElements::kFloat16:
      launch_forward<device::Float16, true>(plan.device, stream);
      break;
  }
  return launch_status();
}

Status prototype_loss_backward_cuda(const PrototypeLossArgs& args, const PrototypeLossGradients& gradients,
                                    const CudaCall& call) {
  PrototypeLossBackwardPlan plan;
  const Status status = plan_prototype_loss_backward(args, gradients, plan);
  if (status != Status::kOk || args.dims == 0) return status;
  const std::int64_t count = args.clients * args.rows;
  if (count > 0 &&
      (gradients.loss_gradient.data == nullptr || gradients.loss == nullptr || gradients.log_sum == nullptr))
    return Status::kNullPointer;
  if (count > 0 && gradients.feature_gradient == nullptr) return Status::kNullPointer;
  if (args.groups > 0 && gradients.prototype_gradient == nullptr) return Status::kNullPointer;
  if (args.groups == 0) return Status::kOk;
  if (call.workspace == nullptr) return Status::kNullPointer;
  if (call.workspace_bytes < plan.workspace_bytes) return Status::kBadShape;
  const DeviceGuard guard(call.device);
  if (guard.status() != Status::kOk) return guard.status();
  auto* stream = static_cast<cudaStream_t>(call.stream);
  place_prototype_loss_backward(static_cast<unsigned char*>(call.workspace), plan);
  switch (plan.elements) {
    case LossElements::kDouble:
      return launch_backward<double, false>(plan, stream);
    case LossElements::kFloat:
      return launch_backward<float, false>(plan, stream);
    case LossElements::kTf32:
      return launch_backward<float, true>(plan, stream);
    case LossElements::kBFloat16:
      return launch_backward<device::BFloat16, true>(plan, stream);
    case LossElements::kFloat16:
      return launch_backward<device::Float16, true>(plan, stream);
  }
  return Status::kOk;
}

}  // namespace mmfl
