// What kernel bodies say to the machine. Bodies use these names alone, so that the same source runs under
// nvcc and, through host_emulation/block.h, as plain C++.
#pragma once

#include <cstdint>
#include <cstring>

#if !defined(__CUDACC__)
#include "host_emulation/block.h"
#else

#define MMFL_DEVICE __device__ __forceinline__
#define MMFL_RESTRICT __restrict__

namespace mmfl {
namespace device {

MMFL_DEVICE int thread() { return static_cast<int>(threadIdx.x); }
MMFL_DEVICE std::int64_t block_x() { return blockIdx.x; }
MMFL_DEVICE std::int64_t block_y() { return blockIdx.y; }

MMFL_DEVICE void sync_block() { __syncthreads(); }

// The whole warp takes part in the calls from here to the products.
MMFL_DEVICE float shuffle(float value, int lane) { return __shfl_sync(0xffffffffu, value, lane); }
MMFL_DEVICE double shuffle(double value, int lane) { return __shfl_sync(0xffffffffu, value, lane); }
MMFL_DEVICE float shuffle_xor(float value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }
MMFL_DEVICE double shuffle_xor(double value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }
MMFL_DEVICE bool any_lane(bool condition) { return __any_sync(0xffffffffu, condition) != 0; }

// d += A B for a 16 x 8 matrix A and an 8 x 8 matrix B of tf32 (the upper 19 bits of a float). With
// g = lane / 4 and t = lane % 4, a lane holds A(g, t), A(g + 8, t), A(g, t + 4), A(g + 8, t + 4), then
// B(t, g), B(t + 4, g), and d(g, 2t), d(g, 2t + 1), d(g + 8, 2t), d(g + 8, 2t + 1).
MMFL_DEVICE void multiply_add_tf32(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// The same for a 16 x 16 matrix A and a 16 x 8 matrix B of bfloat16 or float16, two neighbours along the sum
// in a word: from A(g, 2t), A(g + 8, 2t), A(g, 2t + 8), A(g + 8, 2t + 8), then from B(2t, g) and B(2t + 8, g)
// on.
MMFL_DEVICE void multiply_add_bf16(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
MMFL_DEVICE void multiply_add_f16(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// The same for an 8 x 4 matrix A(g, t) and a 4 x 8 matrix B(t, g) of doubles; d(g, 2t), d(g, 2t + 1).
MMFL_DEVICE void multiply_add_f64(double (&d)[2], double a, double b) {
  asm("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0, %1}, {%2}, {%3}, {%0, %1};"
      : "+d"(d[0]), "+d"(d[1])
      : "d"(a), "d"(b));
}

struct Chunk16 {
  std::uint32_t words[4];
};
struct Chunk8 {
  std::uint32_t words[2];
};

// `from` is a multiple of the size and is not written while the kernel runs.
MMFL_DEVICE Chunk16 load_16_bytes(const void* from) {
  const uint4 words = __ldg(static_cast<const uint4*>(from));
  return {{words.x, words.y, words.z, words.w}};
}
MMFL_DEVICE Chunk8 load_8_bytes(const void* from) {
  const uint2 words = __ldg(static_cast<const uint2*>(from));
  return {{words.x, words.y}};
}

// The same of shared memory.
MMFL_DEVICE Chunk16 read_16_bytes(const void* from) {
  const uint4 words = *static_cast<const uint4*>(from);
  return {{words.x, words.y, words.z, words.w}};
}

// 16 bytes on their way from global to shared memory, past the registers; both addresses are multiples of 16,
// and global memory is asked for whole lines of 128 bytes. What a thread has asked for since its last
// end_copies is one group. Once it has waited, the bytes are there for itself; for others behind a barrier.
MMFL_DEVICE void copy_16_bytes(void* to, const void* from) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(
                   static_cast<std::uint32_t>(__cvta_generic_to_shared(to))),
               "l"(from)
               : "memory");
}
// The same of 8 bytes.
MMFL_DEVICE void copy_8_bytes(void* to, const void* from) {
  asm volatile("cp.async.ca.shared.global.L2::128B [%0], [%1], 8;" ::"r"(
                   static_cast<std::uint32_t>(__cvta_generic_to_shared(to))),
               "l"(from)
               : "memory");
}
MMFL_DEVICE void end_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Until all of this thread's groups are there but the last kLater.
template <int kLater>
MMFL_DEVICE void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLater) : "memory");
}

// Into the L2 cache.
MMFL_DEVICE void prefetch(const void* from) { asm volatile("prefetch.global.L2 [%0];" ::"l"(from)); }

// One more at a counter. What this block wrote before is seen by the block that finds the counter at its last
// value; call it behind a barrier, in one thread.
MMFL_DEVICE unsigned count_arrival(unsigned* counter) {
  __threadfence();
  const unsigned before = atomicAdd(counter, 1u);
  __threadfence();
  return before;
}

// The compiler moves no memory access across; it would hold as many values in registers as it can move.
MMFL_DEVICE void keep_order() { asm volatile("" ::: "memory"); }

// The same value, of which the compiler knows nothing: what follows from it is worked out here, not in front
// of a loop.
MMFL_DEVICE std::int64_t unknown(std::int64_t value) {
  asm volatile("" : "+l"(value));
  return value;
}
MMFL_DEVICE float unknown(float value) {
  asm volatile("" : "+f"(value));
  return value;
}

// `to` is a multiple of the size.
MMFL_DEVICE void store_16_bytes(void* to, const Chunk16& chunk) {
  *static_cast<uint4*>(to) = make_uint4(chunk.words[0], chunk.words[1], chunk.words[2], chunk.words[3]);
}
MMFL_DEVICE void store_8_bytes(void* to, const Chunk8& chunk) {
  *static_cast<uint2*>(to) = make_uint2(chunk.words[0], chunk.words[1]);
}

MMFL_DEVICE float float_from_float16(std::uint16_t bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}

MMFL_DEVICE std::uint16_t float16_from_float(float value) {
  std::uint16_t bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}

MMFL_DEVICE std::uint16_t bfloat16_from_float(float value) {
  std::uint16_t bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}

}  // namespace device
}  // namespace mmfl

#endif

namespace mmfl {
namespace device {

constexpr int kWarp = 32;

MMFL_DEVICE std::uint32_t bits_of(float value) {
  std::uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

MMFL_DEVICE float float_from_bits(std::uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

MMFL_DEVICE float float_from_bfloat16(std::uint16_t bits) {
  return float_from_bits(static_cast<std::uint32_t>(bits) << 16);
}

template <typename T>
MMFL_DEVICE bool is_finite(T value) {
  return value * T(0) == T(0);
}

template <typename T>
MMFL_DEVICE T quiet_nan() {
  return static_cast<T>(float_from_bits(0x7fc00000u));
}

}  // namespace device
}  // namespace mmfl
