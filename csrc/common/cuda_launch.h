#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <vector>

#include "common/status.h"

namespace mmfl {

// Makes a device current for the life of the object.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    status_ = cudaGetDevice(&previous_);
    if (status_ == cudaSuccess && previous_ != device) status_ = cudaSetDevice(device);
  }
  ~DeviceGuard() {
    if (status_ == cudaSuccess) cudaSetDevice(previous_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

  Status status() const { return status_ == cudaSuccess ? Status::kOk : Status::kCudaError; }

 private:
  int previous_ = 0;
  cudaError_t status_;
};

// Of the launches since the last call.
inline Status launch_status() { return cudaGetLastError() == cudaSuccess ? Status::kOk : Status::kCudaError; }

// Lets a kernel have more shared memory than the 48 KiB it may have unasked, and as many blocks of it on a
// multiprocessor as fit.
template <typename Kernel>
Status allow_shared_memory(Kernel kernel, int bytes) {
  const auto* function = reinterpret_cast<const void*>(kernel);
  cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  cudaFuncSetAttribute(function, cudaFuncAttributePreferredSharedMemoryCarveout,
                       cudaSharedmemCarveoutMaxShared);
  return launch_status();
}

// Writes `bytes` to device memory, by way of kernel arguments: asynchronous, and a captured graph holds its
// own copy, which no copy from pageable memory offers.
void launch_upload(const std::vector<unsigned char>& bytes, void* to, cudaStream_t stream);

}  // namespace mmfl
