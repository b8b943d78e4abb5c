// Runs a kernel body on the CPU, one block after the other. Every CUDA thread of a block is a fibre of its
// own; it runs until it meets a barrier or a warp-wide operation and goes on when all that are to meet it
// have arrived. Between two barriers the threads run one after the other, so a body that lacks a barrier
// reads what nobody has written yet. Shared memory starts as NaN for that reason.
//
// MMFL_EMULATE_WITHOUT_BLOCK_BARRIER makes sync_block() and wait_for_copies() do nothing, which a test needs
// to see them missed: in the launch whose number the environment variable of that name gives, or in all.
#pragma once

#include <ucontext.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

// The number formats of common/simd.h, as one more level.
#define MMFL_SIMD emulated
#define MMFL_SIMD_BYTES 16
#include "common/simd.h"

#define MMFL_DEVICE inline
#define MMFL_RESTRICT __restrict__

namespace mmfl {
namespace emulation {

constexpr int kWarp = 32;
constexpr std::size_t kStackBytes = std::size_t{1} << 18;

// In which order the threads of a block run between two barriers, and the blocks. A result that depends on it
// is a race.
enum class Order { kForward, kBackward };

[[noreturn]] inline void fail(const char* message) {
  std::fprintf(stderr, "emulation: %s\n", message);
  std::exit(3);
}

// Of the launch that runs, counted from 0.
inline int& launch_number() {
  static int number = -1;
  return number;
}

inline bool lacks_block_barrier() {
#if defined(MMFL_EMULATE_WITHOUT_BLOCK_BARRIER)
  static const char* const number = std::getenv("MMFL_EMULATE_WITHOUT_BLOCK_BARRIER");
  return number == nullptr || std::atoi(number) == launch_number();
#else
  return false;
#endif
}

class Block {
 public:
  Block(int threads, Order order, std::function<void()> body)
      : order_(order), body_(std::move(body)), fibres_(static_cast<std::size_t>(threads)) {
    if (threads % kWarp != 0) fail("a block must hold whole warps");
    exchange_.resize(2 * fibres_.size());
    // Blocks follow one another, so they share their stacks.
    static std::vector<std::unique_ptr<char[]>> stacks;
    while (stacks.size() < fibres_.size()) stacks.emplace_back(new char[kStackBytes]);
    for (std::size_t i = 0; i < fibres_.size(); ++i) fibres_[i].stack = stacks[i].get();
  }

  static Block& current() { return *current_block(); }

  void run(std::int64_t x, std::int64_t y) {
    x_ = x;
    y_ = y;
    current_block() = this;
    for (Fibre& fibre : fibres_) {
      getcontext(&fibre.context);
      fibre.context.uc_stack.ss_sp = fibre.stack;
      fibre.context.uc_stack.ss_size = kStackBytes;
      fibre.context.uc_link = nullptr;
      makecontext(&fibre.context, &Block::enter, 0);
      fibre.state = State::kReady;
      fibre.exchanges = 0;
      fibre.copies.clear();
      fibre.copy_groups = 0;
    }
    while (run_warps() || release(State::kAtBlock, 0, fibres_.size())) {
    }
    for (const Fibre& fibre : fibres_) {
      if (fibre.state != State::kDone) fail("a barrier is met by some threads and not by others");
      if (!fibre.copies.empty()) fail("a thread has not waited for its copies");
    }
  }

  int thread() const { return running_; }
  std::int64_t x() const { return x_; }
  std::int64_t y() const { return y_; }

  void sync_block() { wait(State::kAtBlock); }
  void sync_warp() { wait(State::kAtWarp); }

  // A copy is made when it is waited for, as late as the machine may make it. Until then NaN is in its place,
  // from the moment when the machine may begin to write.
  void start_copy(void* to, const void* from, std::size_t bytes) {
    Fibre& fibre = fibres_[static_cast<std::size_t>(running_)];
    std::memset(to, 0xff, bytes);
    fibre.copies.push_back({to, from, bytes, fibre.copy_groups});
  }
  void end_copies() { ++fibres_[static_cast<std::size_t>(running_)].copy_groups; }
  void wait_for_copies(int later) {
    Fibre& fibre = fibres_[static_cast<std::size_t>(running_)];
    std::size_t done = 0;
    for (; done < fibre.copies.size() && fibre.copies[done].group < fibre.copy_groups - later; ++done)
      std::memcpy(fibre.copies[done].to, fibre.copies[done].from, fibre.copies[done].bytes);
    fibre.copies.erase(fibre.copies.begin(), fibre.copies.begin() + static_cast<std::ptrdiff_t>(done));
  }

  // Shows `value` to the warp, calls read(lane -> value of that lane), and returns what it returned.
  template <typename Value, typename Read>
  auto exchange(const Value& value, Read read) {
    static_assert(sizeof(Value) <= sizeof(Slot), "larger than a slot");
    const int lane = running_ % kWarp;
    // Two sets of slots in turn: nobody is more than one exchange ahead of who still reads the other set.
    const unsigned set = fibres_[static_cast<std::size_t>(running_)].exchanges++ % 2;
    Slot* slots = exchange_.data() + set * fibres_.size() + (running_ - lane);
    std::memcpy(slots[lane].bytes, &value, sizeof value);
    sync_warp();
    return read([slots](int other) {
      Value shown;
      std::memcpy(&shown, slots[other].bytes, sizeof shown);
      return shown;
    });
  }

 private:
  enum class State { kReady, kAtBlock, kAtWarp, kDone };
  struct Copy {
    void* to;
    const void* from;
    std::size_t bytes;
    int group;
  };
  struct Fibre {
    ucontext_t context;
    char* stack = nullptr;
    void* fake_stack = nullptr;
    State state = State::kDone;
    unsigned exchanges = 0;
    std::vector<Copy> copies;  // not made yet
    int copy_groups = 0;       // ended so far
  };
  struct Slot {
    unsigned char bytes[32];
  };

  static Block*& current_block() {
    static Block* block = nullptr;
    return block;
  }

  static void enter() {
    Block& block = current();
    block.arrived(nullptr);
    block.body_();
    block.fibres_[static_cast<std::size_t>(block.running_)].state = State::kDone;
    block.leave(/*last=*/true);
  }

  void wait(State state) {
    fibres_[static_cast<std::size_t>(running_)].state = state;
    leave(/*last=*/false);
  }

  // From a fibre back to the scheduler.
  void leave(bool last) {
    Fibre& fibre = fibres_[static_cast<std::size_t>(running_)];
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(last ? nullptr : &fibre.fake_stack, scheduler_stack_, scheduler_bytes_);
#else
    (void)last;
#endif
    swapcontext(&fibre.context, &scheduler_);
    arrived(fibre.fake_stack);
  }

  // The first thing a fibre does after each switch to it.
  void arrived(void* fake_stack) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake_stack, &scheduler_stack_, &scheduler_bytes_);
#else
    (void)fake_stack;
#endif
  }

  // One warp after the other, each as far as it gets without the rest of the block: a warp that is far ahead
  // of another shows what a barrier fails to keep apart.
  bool run_warps() {
    bool any = false;
    const int warps = static_cast<int>(fibres_.size()) / kWarp;
    for (int i = 0; i < warps; ++i) {
      const int first = kWarp * (order_ == Order::kForward ? i : warps - 1 - i);
      while (run_ready(first) || release(State::kAtWarp, static_cast<std::size_t>(first),
                                         static_cast<std::size_t>(first + kWarp)))
        any = true;
    }
    return any;
  }

  bool run_ready(int first) {
    bool any = false;
    for (int i = 0; i < kWarp; ++i) {
      running_ = first + (order_ == Order::kForward ? i : kWarp - 1 - i);
      Fibre& fibre = fibres_[static_cast<std::size_t>(running_)];
      if (fibre.state != State::kReady) continue;
      any = true;
#if defined(__SANITIZE_ADDRESS__)
      void* fake_stack = nullptr;
      __sanitizer_start_switch_fiber(&fake_stack, fibre.stack, kStackBytes);
      swapcontext(&scheduler_, &fibre.context);
      __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#else
      swapcontext(&scheduler_, &fibre.context);
#endif
    }
    return any;
  }

  // Lets those go on whose barrier is complete: all threads that have not returned stand at it.
  bool release(State state, std::size_t first, std::size_t end) {
    bool any = false;
    for (std::size_t i = first; i < end; ++i) {
      if (fibres_[i].state != state && fibres_[i].state != State::kDone) return false;
      any = any || fibres_[i].state == state;
    }
    for (std::size_t i = first; i < end; ++i)
      if (fibres_[i].state == state) fibres_[i].state = State::kReady;
    return any;
  }

  const Order order_;
  const std::function<void()> body_;
  std::vector<Fibre> fibres_;
  std::vector<Slot> exchange_;
  ucontext_t scheduler_;
  const void* scheduler_stack_ = nullptr;
  std::size_t scheduler_bytes_ = 0;
  int running_ = 0;
  std::int64_t x_ = 0;
  std::int64_t y_ = 0;
};

// What stands for kernel<<<dim3(grid_x, grid_y), threads>>>: body(shared) in every thread of every block,
// with `shared` filled with NaN before each block.
template <typename Shared, typename Body>
void run_grid(std::int64_t grid_x, std::int64_t grid_y, int threads, Order order, Body body) {
  ++launch_number();
  std::unique_ptr<Shared> shared(new Shared);
  Block block(threads, order, [&] { body(*shared); });
  for (std::int64_t i = 0; i < grid_x * grid_y; ++i) {
    const std::int64_t number = order == Order::kForward ? i : grid_x * grid_y - 1 - i;
    std::memset(static_cast<void*>(shared.get()), 0xff, sizeof(Shared));
    block.run(number % grid_x, number / grid_x);
  }
}

}  // namespace emulation

namespace device {

using emulated::bfloat16_from_float;
using emulated::float16_from_float;
using emulated::float_from_float16;

inline int thread() { return emulation::Block::current().thread(); }
inline std::int64_t block_x() { return emulation::Block::current().x(); }
inline std::int64_t block_y() { return emulation::Block::current().y(); }

inline void sync_block() {
  if (!emulation::lacks_block_barrier()) emulation::Block::current().sync_block();
}

template <typename T>
T shuffle(T value, int lane) {
  return emulation::Block::current().exchange(value, [lane](auto of) { return of(lane); });
}

template <typename T>
T shuffle_xor(T value, int mask) {
  return shuffle(value, thread() % emulation::kWarp ^ mask);
}

inline bool any_lane(bool condition) {
  return emulation::Block::current().exchange(condition, [](auto of) {
    bool any = false;
    for (int lane = 0; lane < emulation::kWarp; ++lane) any = of(lane) || any;
    return any;
  });
}

// d plus the product of a warp's operands: add(of, row, half, column, sum) adds what belongs to row
// `row + 8 * half` and to `column`, where of(lane) are the operands that a lane holds.
template <typename Add>
void multiply_add_operands(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2], Add add) {
  struct Operands {
    std::uint32_t a[4];
    std::uint32_t b[2];
  } mine;
  std::memcpy(mine.a, a, sizeof mine.a);
  std::memcpy(mine.b, b, sizeof mine.b);
  const int row = thread() % emulation::kWarp / 4, place = thread() % 4;
  struct Sums {
    float of[4];
  };
  const Sums sums = emulation::Block::current().exchange(mine, [&](auto of) {
    Sums result;
    for (int c = 0; c < 4; ++c) result.of[c] = add(of, row, c / 2, 2 * place + c % 2, d[c]);
    return result;
  });
  std::memcpy(d, sums.of, sizeof sums.of);
}

inline float tf32(std::uint32_t bits) {
  bits &= 0xffffe000u;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline void multiply_add_tf32(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
  multiply_add_operands(d, a, b, [](auto of, int row, int half, int column, float sum) {
    for (int k = 0; k < 8; ++k)
      sum += tf32(of(4 * row + k % 4).a[half + k / 4 * 2]) * tf32(of(4 * column + k % 4).b[k / 4]);
    return sum;
  });
}

template <typename Decode>
void multiply_add_16_bit(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2],
                         Decode decode) {
  multiply_add_operands(d, a, b, [&](auto of, int row, int half, int column, float sum) {
    for (int k = 0; k < 16; ++k) {
      const std::uint32_t left = of(4 * row + k % 8 / 2).a[half + k / 8 * 2];
      const std::uint32_t right = of(4 * column + k % 8 / 2).b[k / 8];
      sum += decode(static_cast<std::uint16_t>(left >> (k % 2 * 16))) *
             decode(static_cast<std::uint16_t>(right >> (k % 2 * 16)));
    }
    return sum;
  });
}

inline void multiply_add_bf16(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
  multiply_add_16_bit(d, a, b, [](std::uint16_t bits) { return emulated::float_from_bfloat16(bits); });
}

inline void multiply_add_f16(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
  multiply_add_16_bit(d, a, b, [](std::uint16_t bits) { return float_from_float16(bits); });
}

struct DoubleOperands {
  double a;
  double b;
};

inline void multiply_add_f64(double (&d)[2], double a, double b) {
  const int group = thread() % emulation::kWarp / 4, place = thread() % 4;
  struct Sums {
    double of[2];
  };
  const Sums sums = emulation::Block::current().exchange(DoubleOperands{a, b}, [&](auto of) {
    Sums result;
    for (int c = 0; c < 2; ++c) {
      double sum = d[c];
      for (int k = 0; k < 4; ++k) sum += of(4 * group + k).a * of(4 * (2 * place + c) + k).b;
      result.of[c] = sum;
    }
    return result;
  });
  std::memcpy(d, sums.of, sizeof sums.of);
}

struct Chunk16 {
  std::uint32_t words[4];
};
struct Chunk8 {
  std::uint32_t words[2];
};

template <typename Chunk>
Chunk load_aligned(const void* from) {
  if (reinterpret_cast<std::uintptr_t>(from) % sizeof(Chunk) != 0) emulation::fail("a load is not aligned");
  Chunk chunk;
  std::memcpy(&chunk, from, sizeof chunk);
  return chunk;
}

template <typename Chunk>
void store_aligned(void* to, const Chunk& chunk) {
  if (reinterpret_cast<std::uintptr_t>(to) % sizeof(Chunk) != 0) emulation::fail("a store is not aligned");
  std::memcpy(to, &chunk, sizeof chunk);
}

inline Chunk16 load_16_bytes(const void* from) { return load_aligned<Chunk16>(from); }
inline Chunk8 load_8_bytes(const void* from) { return load_aligned<Chunk8>(from); }
inline Chunk16 read_16_bytes(const void* from) { return load_aligned<Chunk16>(from); }
inline void store_16_bytes(void* to, const Chunk16& chunk) { store_aligned(to, chunk); }
inline void store_8_bytes(void* to, const Chunk8& chunk) { store_aligned(to, chunk); }
inline void copy_bytes(void* to, const void* from, std::size_t bytes) {
  if (reinterpret_cast<std::uintptr_t>(to) % bytes != 0 ||
      reinterpret_cast<std::uintptr_t>(from) % bytes != 0)
    emulation::fail("a copy is not aligned");
  emulation::Block::current().start_copy(to, from, bytes);
}
inline void copy_16_bytes(void* to, const void* from) { copy_bytes(to, from, 16); }
inline void copy_8_bytes(void* to, const void* from) { copy_bytes(to, from, 8); }
inline void end_copies() { emulation::Block::current().end_copies(); }
template <int kLater>
void wait_for_copies() {
  if (!emulation::lacks_block_barrier()) emulation::Block::current().wait_for_copies(kLater);
}
inline unsigned count_arrival(unsigned* counter) { return (*counter)++; }
inline void prefetch(const void*) {}
inline void keep_order() {}
inline std::int64_t unknown(std::int64_t value) { return value; }
inline float unknown(float value) { return value; }

}  // namespace device
}  // namespace mmfl
