// Operands of matrix products in shared memory, 128 bytes of every row at a time, for blocks of kSlabThreads.
#pragma once

#include <type_traits>

#include "common/products.cuh"
#include "common/row_chunk.cuh"

namespace mmfl {
namespace device {

constexpr int kSlabThreads = 128;

// Elements that stay as they are in memory, for matrix instructions that take them so.
struct BFloat16 {
  std::uint16_t bits;
};
struct Float16 {
  std::uint16_t bits;
};

template <typename E>
struct ComputeType {
  using Type = E;
};
template <>
struct ComputeType<BFloat16> {
  using Type = float;
};
template <>
struct ComputeType<Float16> {
  using Type = float;
};
template <typename E>
using Compute = typename ComputeType<E>::Type;

MMFL_DEVICE float float_of(BFloat16 value) { return float_from_bfloat16(value.bits); }
MMFL_DEVICE float float_of(Float16 value) { return float_from_float16(value.bits); }
MMFL_DEVICE float float_of(float value) { return value; }
MMFL_DEVICE double float_of(double value) { return value; }

// Chunks of 16 bytes: 8 make a slab of one row.
template <typename E>
constexpr int kSlabColumns = 8 * kColumns<E>;

template <typename E>
MMFL_DEVICE void unpack(const Chunk16& chunk, Compute<E> (&values)[kColumns<E>]) {
  E elements[kColumns<E>];
  memcpy(elements, chunk.words, sizeof elements);
#pragma unroll
  for (int c = 0; c < kColumns<E>; ++c) values[c] = float_of(elements[c]);
}

template <typename T>
MMFL_DEVICE Chunk16 packed(const T (&values)[kColumns<T>]) {
  Chunk16 chunk;
  memcpy(chunk.words, values, sizeof values);
  return chunk;
}

// A chunk of a row in global memory, in the element type E; zeros from column `width` on.
template <typename E>
MMFL_DEVICE Chunk16 load_chunk(const Span& row, std::int64_t column, std::int64_t width) {
  if constexpr (sizeof(E) == 2) {
    const auto* elements = static_cast<const std::uint16_t*>(row.data);
    if (row.stride == 1 && column + kColumns<E> <= width &&
        reinterpret_cast<std::uintptr_t>(elements + column) % 16 == 0)
      return load_16_bytes(elements + column);
    Chunk16 chunk{};
#pragma unroll
    for (int c = 0; c < kColumns<E>; ++c)
      if (column + c < width)
        chunk.words[c / 2] |= std::uint32_t{elements[(column + c) * row.stride]} << (c % 2 * 16);
    return chunk;
  } else {
    E values[kColumns<E>];
    load_row(row, column, width, values);
    return packed(values);
  }
}

template <typename E, int kRows>
struct alignas(16) Slab {
  E of[kRows][kSlabColumns<E>];

  // Chunks change places so that eight lanes at a time meet all banks, be they at four chunks of two
  // neighbouring rows or at two chunks of every other row.
  MMFL_DEVICE E* place(int row, int chunk) {
    return of[row] + (chunk ^ (row & 6) ^ (row & 1) << 2) * kColumns<E>;
  }

  MMFL_DEVICE Chunk16 read(int row, int chunk) { return read_16_bytes(place(row, chunk)); }
  MMFL_DEVICE void write(int row, int chunk, const Chunk16& value) {
    store_16_bytes(place(row, chunk), value);
  }
};

// One slab of kRows rows on its way from global to shared memory: eight threads to a row.
template <typename E, int kRows>
struct SlabLoad {
  static constexpr int kParts = 8 * kRows / kSlabThreads;
  Chunk16 chunks[kParts];

  static MMFL_DEVICE int row(int part) { return thread() / 8 + part * (kSlabThreads / 8); }
  static MMFL_DEVICE int chunk() { return thread() % 8; }

  // start_of(i): where row i starts, null for zeros.
  template <typename StartOf>
  MMFL_DEVICE void load(StartOf start_of, std::int64_t stride, DType dtype, std::int64_t column,
                        std::int64_t width) {
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const void* from = start_of(row(part));
      chunks[part] = load_chunk<E>({from, stride, dtype}, column + chunk() * kColumns<E>, from ? width : 0);
    }
  }

  MMFL_DEVICE void write(Slab<E, kRows>& slab) const {
#pragma unroll
    for (int part = 0; part < kParts; ++part) slab.write(row(part), chunk(), chunks[part]);
  }
};

// What a lane multiplies with chunks of 2 rows and of 4 others; the columns go to the matrix instructions in
// an order of their own, the same on both sides.
template <typename T, bool kTf32>
using ChunkProducts = Products<T, 2, 4, false, kTf32>;

template <typename E, bool kTf32>
MMFL_DEVICE void add_chunks(ChunkProducts<Compute<E>, kTf32>& products, const Chunk16 (&left)[2],
                            const Chunk16 (&right)[4], int live) {
  if constexpr (sizeof(E) == 2) {
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      if (n >= live) continue;
      float product[4] = {};
#pragma unroll
      for (int w = 0; w < 4; w += 2) {
        const std::uint32_t a[4] = {left[0].words[w], left[1].words[w], left[0].words[w + 1],
                                    left[1].words[w + 1]};
        const std::uint32_t b[2] = {right[n].words[w], right[n].words[w + 1]};
        if constexpr (std::is_same<E, BFloat16>::value) {
          multiply_add_bf16(product, a, b);
        } else {
          multiply_add_f16(product, a, b);
        }
      }
#pragma unroll
      for (int c = 0; c < 4; ++c) products.sums[0][n][c] += product[c];
    }
  } else {
    E a[2][kColumns<E>], b[4][kColumns<E>];
#pragma unroll
    for (int m = 0; m < 2; ++m) unpack<E>(left[m], a[m]);
#pragma unroll
    for (int n = 0; n < 4; ++n) unpack<E>(right[n], b[n]);
#pragma unroll
    for (int c = 0; c < kColumns<E>; c += products.kPerStep) {
      products.add(a, b, live);
      drop_columns<products.kPerStep>(a);
      drop_columns<products.kPerStep>(b);
    }
  }
}

// The products of a warp's 16 rows with 8 kPanels others.
template <typename E, int kPanels, bool kTf32>
struct Scores {
  using T = Compute<E>;
  ChunkProducts<T, kTf32> groups[kPanels / 4];

  MMFL_DEVICE void clear() {
#pragma unroll
    for (int g = 0; g < kPanels / 4; ++g) groups[g].clear();
  }

  // Row lane / 4 + 8 `half`, column 8 `panel` + 2 (lane % 4) + c.
  MMFL_DEVICE T& at(int half, int panel, int c) { return groups[panel / 4].at(half, panel % 4, c); }

  // Rows from `first` on with the first `live` panels of the others.
  template <int kRows>
  MMFL_DEVICE void add(Slab<E, kRows>& rows, int first, Slab<E, 8 * kPanels>& others, int live) {
    const int own = first + thread() % kWarp / 4, other = thread() % kWarp / 4;
#pragma unroll 1
    for (int half = 0; half < 2; ++half) {
      const int chunk = 4 * half + thread() % 4;
      const Chunk16 left[2] = {rows.read(own, chunk), rows.read(own + 8, chunk)};
#pragma unroll
      for (int g = 0; g < kPanels / 4; ++g) {
        if (4 * g >= live) continue;
        Chunk16 right[4];
#pragma unroll
        for (int n = 0; n < 4; ++n) right[n] = others.read(32 * g + 8 * n + other, chunk);
        add_chunks<E, kTf32>(groups[g], left, right, live - 4 * g);
      }
    }
  }
};

}  // namespace device
}  // namespace mmfl
