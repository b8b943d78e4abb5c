// What AddressSanitizer does not see by itself: the lanes of masked loads and stores, and where a piece of
// working memory ends. Nothing in other builds. Included only by *_cpu_simd.cpp, see common/simd.h.
#pragma once

#include <cstdint>
#include <cstdlib>

#include "common/simd.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>

// GCC does not install the header that declares it.
extern "C" std::size_t __sanitizer_get_allocated_size(const volatile void* memory);
#endif

namespace mmfl {
namespace MMFL_SIMD {

#if defined(__SANITIZE_ADDRESS__)

// Between two pieces; more than anything that is read at a time.
constexpr std::int64_t kGapBytes = 256;

// Reports a byte of these that nobody may touch.
static inline void touch(const void* data, std::int64_t bytes) {
  const void* bad = __asan_region_is_poisoned(const_cast<void*>(data), static_cast<std::size_t>(bytes));
  if (bad != nullptr) static_cast<void>(*static_cast<const volatile char*>(bad));
}

// From now on nobody may touch this memory of malloc, or anybody again.
static inline void close(void* memory) {
  if (memory != nullptr) __asan_poison_memory_region(memory, __sanitizer_get_allocated_size(memory));
}
static inline void open(void* memory) {
  if (memory != nullptr) __asan_unpoison_memory_region(memory, __sanitizer_get_allocated_size(memory));
}
// Opens `bytes` of it from `piece` on, as far as it reaches.
static inline void open(void* memory, char* piece, std::int64_t bytes) {
  if (memory == nullptr) return;
  const char* end = static_cast<char*>(memory) + __sanitizer_get_allocated_size(memory);
  if (piece + bytes <= end) __asan_unpoison_memory_region(piece, static_cast<std::size_t>(bytes));
}

#else

constexpr std::int64_t kGapBytes = 0;
static inline void touch(const void*, std::int64_t) {}
static inline void close(void*) {}
static inline void open(void*) {}
static inline void open(void*, char*, std::int64_t) {}

#endif

}  // namespace MMFL_SIMD
}  // namespace mmfl
