#pragma once

#include "common/device.cuh"

namespace mmfl {
namespace device {

template <int kThreads>
struct BlockSum {
  double of[kThreads];
};

// The sum of `value` over a block, in the same order on every run; every thread gets it.
template <int kThreads>
MMFL_DEVICE double sum_over_block(double value, BlockSum<kThreads>& shared) {
  shared.of[thread()] = value;
  sync_block();
  for (int width = kThreads / 2; width > 0; width /= 2) {
    if (thread() < width) shared.of[thread()] += shared.of[thread() + width];
    sync_block();
  }
  const double sum = shared.of[0];
  // Before the next call writes.
  sync_block();
  return sum;
}

}  // namespace device
}  // namespace mmfl
