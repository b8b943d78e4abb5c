#include "common/simd_level.h"

#include <cstdlib>
#include <cstring>

namespace mmfl {
namespace {

SimdLevel supported() {
#if defined(MMFL_HAVE_X86_SIMD)
  __builtin_cpu_init();
  const bool avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    return SimdLevel::kAvx512;
  }
  if (avx2) return SimdLevel::kAvx2;
#endif
  return SimdLevel::kPortable;
}

SimdLevel choose() {
  const SimdLevel widest = supported();
  const char* asked = std::getenv("MMFL_SIMD");
  if (asked == nullptr) return widest;
  SimdLevel level = widest;
  if (std::strcmp(asked, "portable") == 0) level = SimdLevel::kPortable;
  if (std::strcmp(asked, "avx2") == 0) level = SimdLevel::kAvx2;
  return level < widest ? level : widest;
}

}  // namespace

SimdLevel simd_level() {
  static const SimdLevel level = choose();
  return level;
}

const char* name(SimdLevel level) {
  switch (level) {
    case SimdLevel::kAvx512:
      return "avx512";
    case SimdLevel::kAvx2:
      return "avx2";
    default:
      return "portable";
  }
}

}  // namespace mmfl
