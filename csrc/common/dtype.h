#pragma once

#include <cstdint>

namespace mmfl {

enum class DType : std::int64_t { kFloat64 = 0, kFloat32 = 1, kBFloat16 = 2, kFloat16 = 3 };

inline std::int64_t size_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat64:
      return 8;
    case DType::kFloat32:
      return 4;
    default:
      return 2;
  }
}

inline bool is_known(DType dtype) {
  return dtype == DType::kFloat64 || dtype == DType::kFloat32 || dtype == DType::kBFloat16 ||
         dtype == DType::kFloat16;
}

}  // namespace mmfl
