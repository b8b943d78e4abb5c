#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

namespace mmfl {

// Lays arrays out one behind the other in device memory that is allocated later. Those with contents come
// first, as one image that is copied to the start; offsets are multiples of 256 bytes.
class WorkspaceLayout {
 public:
  template <typename T>
  const T* table(const std::vector<T>& values) {
    const auto offset = take(static_cast<std::int64_t>(values.size() * sizeof(T)));
    image_.resize(static_cast<std::size_t>(bytes_));
    if (!values.empty()) std::memcpy(image_.data() + offset, values.data(), values.size() * sizeof(T));
    return reinterpret_cast<const T*>(offset);
  }

  template <typename T>
  T* array(std::int64_t count) {
    return reinterpret_cast<T*>(take(count * static_cast<std::int64_t>(sizeof(T))));
  }

  std::int64_t bytes() const { return bytes_; }
  std::vector<unsigned char>& image() { return image_; }

 private:
  std::uintptr_t take(std::int64_t bytes) {
    const std::int64_t offset = bytes_;
    bytes_ += (bytes + 255) / 256 * 256;
    return static_cast<std::uintptr_t>(offset);
  }

  std::int64_t bytes_ = 256;
  std::vector<unsigned char> image_;
};

// An offset of a WorkspaceLayout as an address; an offset of 0 stays null.
template <typename T>
void place(unsigned char* workspace, T*& pointer) {
  const auto offset = reinterpret_cast<std::uintptr_t>(pointer);
  pointer = offset == 0 ? nullptr : reinterpret_cast<T*>(workspace + offset);
}

}  // namespace mmfl
