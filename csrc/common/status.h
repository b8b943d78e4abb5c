#pragma once

namespace mmfl {

// Kernels return one of these; the bindings turn it into a Python exception.
enum class Status { kOk, kNullPointer, kBadShape, kBadDtype, kBadLabel, kOutOfMemory, kCudaError };

inline const char* describe(Status status) {
  switch (status) {
    case Status::kOk:
      return "ok";
    case Status::kNullPointer:
      return "null pointer for a tensor that has elements";
    case Status::kBadShape:
      return "negative or inconsistent size";
    case Status::kBadDtype:
      return "unknown dtype code";
    case Status::kBadLabel:
      return "a label outside [0, number of classes)";
    case Status::kOutOfMemory:
      return "scratch memory could not be allocated";
    case Status::kCudaError:
      return "CUDA error";
  }
  return "unknown status";
}

}  // namespace mmfl
