#include <cuda_runtime.h>

#include "algebra/algebra.cuh"
#include "common/cuda_launch.h"

namespace mmfl {
namespace {

template <algebra::Step kStep>
__global__ void __launch_bounds__(kAlgebraThreads)
    algebra_kernel(const __grid_constant__ AlgebraDevice args) {
  device::algebra_element<kStep>(args);
}

template <algebra::Step kStep>
void launch(const AlgebraDevice& args, cudaStream_t stream) {
  const std::int64_t blocks = (args.count * args.count + kAlgebraThreads - 1) / kAlgebraThreads;
  algebra_kernel<kStep><<<static_cast<unsigned>(blocks), kAlgebraThreads, 0, stream>>>(args);
}

}  // namespace

Status algebra_cuda(algebra::Step step, const AlgebraDevice& args, const CudaCall& call) {
  if (args.count == 0) return Status::kOk;
  const DeviceGuard guard(call.device);
  if (guard.status() != Status::kOk) return guard.status();
  auto* stream = static_cast<cudaStream_t>(call.stream);
  switch (step) {
    case algebra::Step::kCosine:
      launch<algebra::Step::kCosine>(args, stream);
      break;
    case algebra::Step::kAngular:
      launch<algebra::Step::kAngular>(args, stream);
      break;
    case algebra::Step::kSqDistance:
      launch<algebra::Step::kSqDistance>(args, stream);
      break;
    case algebra::Step::kAlignment:
      launch<algebra::Step::kAlignment>(args, stream);
      break;
  }
  return launch_status();
}

}  // namespace mmfl
