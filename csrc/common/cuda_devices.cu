#include <cuda_runtime_api.h>

#include "common/cuda_devices.h"

namespace mmfl {

CudaReport cuda_report() {
  CudaReport report{};
  cudaRuntimeGetVersion(&report.runtime_version);
  cudaDriverGetVersion(&report.driver_version);
  int count = 0;
  cudaError_t error = cudaGetDeviceCount(&count);
  for (int index = 0; index < count && error == cudaSuccess; ++index) {
    cudaDeviceProp properties;
    error = cudaGetDeviceProperties(&properties, index);
    if (error == cudaSuccess) report.devices.push_back({properties.name, properties.major, properties.minor});
  }
  if (error != cudaSuccess) {
    report.error = cudaGetErrorString(error);
    // The error is reported here and must not surface in the next CUDA call of the process.
    cudaGetLastError();
  }
  return report;
}

}  // namespace mmfl
