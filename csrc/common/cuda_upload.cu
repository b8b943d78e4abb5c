#include <cuda_runtime.h>

#include <algorithm>
#include <cstring>

#include "common/cuda_launch.h"

namespace mmfl {
namespace {

// Read by words.
template <int kBytes>
struct alignas(16) Piece {
  unsigned char bytes[kBytes];
};

// All arguments of a kernel take at most 32764 bytes from CUDA 12.1 on, 4096 before.
constexpr int kSmallPiece = 3840;
#if CUDART_VERSION >= 12010
constexpr int kLargePiece = 32512;
#else
constexpr int kLargePiece = kSmallPiece;
#endif

template <int kBytes>
__global__ void upload_kernel(const __grid_constant__ Piece<kBytes> piece, unsigned char* to, int count) {
  for (int i = static_cast<int>(threadIdx.x) * 4; i < count; i += static_cast<int>(blockDim.x) * 4)
    *reinterpret_cast<std::uint32_t*>(to + i) = *reinterpret_cast<const std::uint32_t*>(piece.bytes + i);
}

template <int kBytes>
std::size_t launch_piece(const unsigned char* from, std::size_t bytes, unsigned char* to,
                         cudaStream_t stream) {
  Piece<kBytes> piece;
  const std::size_t count = std::min<std::size_t>(bytes, kBytes);
  std::memcpy(piece.bytes, from, count);
  upload_kernel<kBytes><<<1, 256, 0, stream>>>(piece, to, static_cast<int>(count));
  return count;
}

}  // namespace

void launch_upload(const std::vector<unsigned char>& bytes, void* to, cudaStream_t stream) {
  auto* out = static_cast<unsigned char*>(to);
  for (std::size_t at = 0; at < bytes.size();) {
    const std::size_t left = bytes.size() - at;
    at += left > kSmallPiece ? launch_piece<kLargePiece>(bytes.data() + at, left, out + at, stream)
                             : launch_piece<kSmallPiece>(bytes.data() + at, left, out + at, stream);
  }
}

}  // namespace mmfl
