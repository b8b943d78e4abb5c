#pragma once

#include <cstdint>

// What a tensor looks like to other libraries: the part of DLPack 1 (dlpack.h of dmlc/dlpack) that reads one
// without owning it. Torch offers it from 2.10 on, as `Tensor.__dlpack_c_exchange_api__`.
namespace mmfl::dlpack {

constexpr std::uint32_t kMajorVersion = 1;
constexpr const char* kCapsuleName = "dlpack_exchange_api";

enum TypeCode : std::uint8_t { kInt = 0, kFloat = 2, kBfloat = 4, kBool = 6 };

struct DataType {
  std::uint8_t code;
  std::uint8_t bits;
  std::uint16_t lanes;
};

struct Tensor {
  void* data;
  std::int32_t device_type;
  std::int32_t device_id;
  std::int32_t dims;
  DataType dtype;
  const std::int64_t* shape;
  const std::int64_t* strides;
  std::uint64_t byte_offset;
};

// Stays as it is in all versions. Behind the newest table come the older ones that are still offered.
struct ExchangeHeader {
  std::uint32_t major;
  std::uint32_t minor;
  const ExchangeHeader* older;
};

struct ExchangeApi {
  ExchangeHeader header;
  void (*allocate)();
  void (*own_from_python)();
  void (*own_to_python)();
  // 0, or -1 with a Python error set. Null where the library has no such function.
  int (*view_from_python)(void* tensor, Tensor* out);
  void (*current_stream)();
};

}  // namespace mmfl::dlpack
