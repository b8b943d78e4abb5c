#pragma once

#include <cstdint>

namespace mmfl {

// Where a CUDA kernel runs, and its working memory there, which the caller allocates.
struct CudaCall {
  int device;
  void* stream;  // cudaStream_t
  void* workspace;
  std::int64_t workspace_bytes;
};

}  // namespace mmfl
