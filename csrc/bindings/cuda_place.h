#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

#include "bindings/tensor_view.h"
#include "common/cuda_call.h"

namespace mmfl {

// Where a CUDA kernel runs and its working memory, which torch allocates. Memory that is freed after the
// launch is reused on the same stream only, behind the kernel.
class CudaPlace {
 public:
  CudaPlace(int device, std::uintptr_t stream, const pybind11::function& allocate, std::int64_t bytes)
      : workspace_(allocate(bytes)),
        call_{device, reinterpret_cast<void*>(stream), TensorView(workspace_).data(), bytes} {}

  const CudaCall& call() const { return call_; }

 private:
  pybind11::object workspace_;
  CudaCall call_;
};

}  // namespace mmfl
