#include "common/thread_pool.h"

#include <dlfcn.h>
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

namespace mmfl {
namespace {

struct Job {
  std::int64_t tasks = 0;
  void (*body)(void*, std::int64_t) = nullptr;
  void* context = nullptr;
  std::atomic<std::int64_t> next{0};

  void work() {
    for (std::int64_t task = next.fetch_add(1); task < tasks; task = next.fetch_add(1)) body(context, task);
  }
};

class Pool {
 public:
  void run(Job& job, int helpers) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      while (static_cast<int>(workers_.size()) < helpers) {
        const int number = static_cast<int>(workers_.size());
        workers_.emplace_back([this, number] { serve(number); });
      }
      job_ = &job;
      wanted_ = helpers;
      pending_ = helpers;
      ++generation_;
    }
    wake_.notify_all();
    job.work();
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [this] { return pending_ == 0; });
    job_ = nullptr;
  }

  // Set by who has the threads; no mutex, because a task of that call may call again.
  std::atomic<bool> busy{false};

 private:
  void serve(int number) {
    std::uint64_t seen = 0;
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [&] { return generation_ != seen; });
      seen = generation_;
      if (number >= wanted_) continue;
      Job* job = job_;
      lock.unlock();
      job->work();
      lock.lock();
      if (--pending_ == 0) done_.notify_one();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  std::condition_variable done_;
  std::vector<std::thread> workers_;
  Job* job_ = nullptr;
  int wanted_ = 0;
  int pending_ = 0;
  std::uint64_t generation_ = 0;
};

// Runs function(data) on a team of threads; a symbol of every OpenMP runtime that GCC code links to.
using OpenMpParallel = void (*)(void (*function)(void*), void* data, unsigned threads, unsigned flags);

// The OpenMP runtime that the host process has loaded, torch's as a rule; null if there is none. Its workers
// spin for milliseconds after each of torch's loops, and threads of our own would share their cores.
OpenMpParallel host_openmp() {
#if defined(__SANITIZE_THREAD__)
  // ThreadSanitizer does not see how a team waits for its members, and would report all that they share.
  return nullptr;
#endif
  static const auto parallel = reinterpret_cast<OpenMpParallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  return parallel;
}

// Never destroyed: workers may still wait on it while the process exits. A forked child has no workers,
// so it starts with a new pool, leaves the old one as it was, and stays away from OpenMP, which would wait
// for its own lost workers.
Pool* pool = new Pool;
bool forked = false;

[[maybe_unused]] const int fork_handler = pthread_atfork(nullptr, nullptr, [] {
  pool = new Pool;
  forked = true;
});

}  // namespace

void parallel_for(std::int64_t tasks, int threads, void (*body)(void*, std::int64_t), void* context) {
  Job job;
  job.tasks = tasks;
  job.body = body;
  job.context = context;
  const int helpers = static_cast<int>(std::min<std::int64_t>(tasks, threads)) - 1;
  if (helpers <= 0 || pool->busy.exchange(true)) return job.work();
  if (!forked && host_openmp() != nullptr) {
    const auto work = [](void* shared_job) { static_cast<Job*>(shared_job)->work(); };
    host_openmp()(work, &job, static_cast<unsigned>(helpers + 1), 0);
  } else {
    pool->run(job, helpers);
  }
  pool->busy = false;
}

}  // namespace mmfl
