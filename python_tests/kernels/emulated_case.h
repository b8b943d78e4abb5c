// How a test hands a case to a program that runs kernels under emulation.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "common/row_block.h"
#include "host_emulation/block.h"

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};
using Bytes = std::unique_ptr<unsigned char, Free>;

// Aligned as device memory is. What lies behind `bytes` belongs to nobody, which AddressSanitizer watches.
inline Bytes nan_filled(std::int64_t bytes) {
  void* memory = nullptr;
  const auto size = static_cast<std::size_t>(bytes);
  if (posix_memalign(&memory, 256, size > 0 ? size : 1) != 0) mmfl::emulation::fail("out of memory");
  std::memset(memory, 0xff, size);
  return Bytes(static_cast<unsigned char*>(memory));
}

class Case {
 public:
  struct Rows {
    std::int64_t count = 0;
    std::vector<std::int64_t> widths;
    std::vector<mmfl::RowBlock> blocks;  // one line
    std::vector<Bytes> memory;
  };

  struct Tensor {
    const void* data = nullptr;
    mmfl::DType dtype = mmfl::DType::kFloat64;  // of numbers; else only their bytes are known
    std::int64_t strides[4] = {0, 0, 0, 0};
    Bytes memory;
  };

  std::int64_t number() {
    std::int64_t value = 0;
    read(&value, sizeof value);
    return value;
  }

  std::vector<double> numbers(std::int64_t count) {
    std::vector<double> values(static_cast<std::size_t>(count));
    read(values.data(), values.size() * sizeof(double));
    return values;
  }

  // Rows and segments; of each segment its width, dtype, stride, bytes in front of the first element, size of
  // the memory in bytes and its contents. Rows lie one behind the other.
  Rows rows() {
    Rows rows;
    rows.count = number();
    const std::int64_t segments = number();
    for (std::int64_t s = 0; s < segments; ++s) {
      const std::int64_t width = number();
      const auto dtype = static_cast<mmfl::DType>(number());
      const std::int64_t stride = number(), front = number(), bytes = number();
      Bytes memory = nan_filled(bytes);
      read(memory.get(), static_cast<std::size_t>(bytes));
      rows.widths.push_back(width);
      rows.blocks.push_back({memory.get() + front, rows.count, width * stride, stride, dtype});
      rows.memory.push_back(std::move(memory));
    }
    return rows;
  }

  // Dtype, four strides, offset of the first element in bytes, size of the memory in bytes (0: null) and its
  // contents.
  Tensor tensor() {
    Tensor tensor;
    tensor.dtype = static_cast<mmfl::DType>(number());
    for (std::int64_t& stride : tensor.strides) stride = number();
    const std::int64_t front = number(), bytes = number();
    if (bytes == 0) return tensor;
    tensor.memory = nan_filled(bytes);
    read(tensor.memory.get(), static_cast<std::size_t>(bytes));
    tensor.data = tensor.memory.get() + front;
    return tensor;
  }

 private:
  void read(void* to, std::size_t bytes) {
    if (std::fread(to, 1, bytes, stdin) != bytes) mmfl::emulation::fail("the case ends early");
  }
};

inline void write_out(const std::vector<double>& values) {
  if (!values.empty()) std::fwrite(values.data(), sizeof(double), values.size(), stdout);
}
