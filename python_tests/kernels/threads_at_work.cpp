// Callers on several threads, and tasks that call again: for ThreadSanitizer, which sees what is not ordered
// whether or not it goes wrong. It does not understand OpenMP, so this is linked to none.
#include <sys/wait.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#include "algebra/algebra.h"
#include "common/thread_pool.h"

namespace {

constexpr int kThreads = 4;
constexpr int kRounds = 200;
constexpr std::int64_t kTasks = 37;

void expect(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "%s\n", what);
  std::exit(1);
}

// What the caller wrote is read by the tasks, and what they wrote by the caller.
void squares(std::int64_t base) {
  std::vector<std::int64_t> given(kTasks, base), made(kTasks, -1);
  mmfl::parallel_for(kTasks, kThreads, [&](std::int64_t task) {
    std::vector<std::int64_t> inner(3, 0);
    mmfl::parallel_for(3, kThreads, [&](std::int64_t i) { inner[i] = given[task]; });
    made[task] = inner[0] * inner[2] + task;
  });
  for (std::int64_t task = 0; task < kTasks; ++task)
    expect(made[task] == base * base + task, "a wrong square");
}

// Enough elements for several threads.
void distances() {
  constexpr std::int64_t kCount = 520;
  std::vector<double> products(kCount * kCount, 1.0);
  for (std::int64_t i = 0; i < kCount; ++i) products[i * kCount + i] = 2.0;
  mmfl::algebra::sq_distance(kCount, products.data(), kThreads);
  for (std::int64_t i = 0; i < kCount; ++i)
    for (std::int64_t j = 0; j < kCount; ++j)
      expect(products[i * kCount + j] == (i == j ? 0.0 : 2.0), "a wrong distance");
}

void on_three_threads(void (*work)(std::int64_t)) {
  std::vector<std::thread> callers;
  for (std::int64_t caller = 1; caller <= 3; ++caller) callers.emplace_back(work, caller);
  for (std::thread& caller : callers) caller.join();
}

}  // namespace

int main() {
  squares(7);
  on_three_threads([](std::int64_t caller) {
    for (int round = 0; round < kRounds; ++round) squares(caller + round);
  });
  on_three_threads([](std::int64_t) { distances(); });

  const pid_t child = fork();
  if (child == 0) {
    squares(11);
    _exit(0);
  }
  int status = -1;
  expect(waitpid(child, &status, 0) == child && status == 0, "the forked process failed");
  squares(13);
  return 0;
}
