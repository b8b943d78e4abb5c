// A flag for tasks that run side by side. Included only by *_cpu_simd.cpp, see common/simd.h.
#pragma once

namespace mmfl {
namespace MMFL_SIMD {

// Raised by any task, read by any and after all of them.
class Flag {
 public:
  void raise() { __atomic_store_n(&raised_, true, __ATOMIC_RELAXED); }
  bool raised() const { return __atomic_load_n(&raised_, __ATOMIC_RELAXED); }

 private:
  bool raised_ = false;
};

}  // namespace MMFL_SIMD
}  // namespace mmfl
