// Working memory. Included only by *_cpu_simd.cpp, see common/simd.h.
#pragma once

#include <cstdint>
#include <cstdlib>

#include "common/simd_address.h"

namespace mmfl {
namespace MMFL_SIMD {

static inline std::int64_t round_up(std::int64_t n, std::int64_t step) {
  return (n + step - 1) / step * step;
}

// One allocation, handed out in pieces aligned to a cache line. Not initialised.
class Scratch {
 public:
  // `bytes` is the sum of the pieces; there is room for aligning up to kPieces of them.
  explicit Scratch(std::int64_t bytes)
      : memory_(static_cast<char*>(std::malloc(static_cast<std::size_t>(bytes + (kPieces + 1) * kStep)))),
        next_(memory_ + (kLine - reinterpret_cast<std::uintptr_t>(memory_) % kLine) % kLine) {
    close(memory_);
  }
  ~Scratch() {
    open(memory_);
    std::free(memory_);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  bool whole() const { return memory_ != nullptr; }

  template <typename T>
  T* take(std::int64_t count) {
    T* piece = reinterpret_cast<T*>(next_);
    open(memory_, next_, count * static_cast<std::int64_t>(sizeof(T)));
    next_ += round_up(count * static_cast<std::int64_t>(sizeof(T)), kLine) + kGapBytes;
    return piece;
  }

 private:
  static constexpr std::int64_t kLine = 64;
  static constexpr std::int64_t kStep = kLine + kGapBytes;
  static constexpr std::int64_t kPieces = 32;
  char* memory_;
  char* next_;
};

}  // namespace MMFL_SIMD
}  // namespace mmfl
