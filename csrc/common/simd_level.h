#pragma once

namespace mmfl {

enum class SimdLevel { kPortable, kAvx2, kAvx512 };

// The widest level this processor runs, unless MMFL_SIMD=portable|avx2|avx512 asks for a narrower one.
SimdLevel simd_level();
const char* name(SimdLevel level);

}  // namespace mmfl

// Calls the build of `function` made for this processor. Every level has its own namespace, so no
// inline function of one level can be linked into another.
#if defined(MMFL_HAVE_X86_SIMD)
#define MMFL_DISPATCH_SIMD(function, ...)                                             \
  (::mmfl::simd_level() == ::mmfl::SimdLevel::kAvx512 ? avx512::function(__VA_ARGS__) \
   : ::mmfl::simd_level() == ::mmfl::SimdLevel::kAvx2 ? avx2::function(__VA_ARGS__)   \
                                                      : portable::function(__VA_ARGS__))
#define MMFL_DECLARE_SIMD(declaration) \
  namespace portable {                 \
  declaration;                         \
  }                                    \
  namespace avx2 {                     \
  declaration;                         \
  }                                    \
  namespace avx512 {                   \
  declaration;                         \
  }
#else
#define MMFL_DISPATCH_SIMD(function, ...) portable::function(__VA_ARGS__)
#define MMFL_DECLARE_SIMD(declaration) \
  namespace portable {                 \
  declaration;                         \
  }
#endif
