#pragma once

#include <cstdint>
#include <type_traits>

namespace mmfl {

// Runs body(context, task) for every task in [0, tasks) on at most `threads` threads, the caller's among
// them, and returns when all are done. Which thread runs a task is not fixed: a kernel is deterministic
// because tasks are cut by shape alone and each writes to its own place. A call made while another is
// running, from any thread, does its tasks on the calling thread. Safe after fork().
void parallel_for(std::int64_t tasks, int threads, void (*body)(void* context, std::int64_t task),
                  void* context);

// The same for any callable body(task).
template <typename Body>
void parallel_for(std::int64_t tasks, int threads, Body&& body) {
  parallel_for(
      tasks, threads,
      [](void* context, std::int64_t task) {
        (*static_cast<typename std::remove_reference<Body>::type*>(context))(task);
      },
      &body);
}

// Threads worth waking for `work` multiply-adds: one for what takes no longer than waking another.
inline int threads_for(double work, int threads) { return work < 1 << 18 ? 1 : threads; }

}  // namespace mmfl
