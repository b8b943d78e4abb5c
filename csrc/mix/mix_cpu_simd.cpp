// A tile of columns is taken through all weighted sums while it is in cache. Every column's arithmetic is
// the same whatever the tile, so the cut is free of consequences for the result.
#include "common/simd.h"
#include "common/simd_pack.h"
#include "common/simd_scratch.h"
#include "common/thread_pool.h"
#include "mix/mix.h"

namespace mmfl {
namespace MMFL_SIMD {
namespace {

// Rows that are added in the compute type; sums of such groups are added in double.
constexpr std::int64_t kPanelRows = 64;
// Rows added to an output in one pass over it.
constexpr int kGroup = 8;
// Register tile of the dense case: kTileRows outputs x kTileVectors vectors of columns.
constexpr int kTileRows = 4;
constexpr int kTileVectors = MMFL_SIMD_BYTES == 64 ? 4 : 2;

std::int64_t smaller(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

std::int64_t tile_width(const MixSegment& segment) {
  // Rows that are read once stream best in long runs; others stay in 256 KiB of cache with the outputs.
  if (segment.reads_once) return 4096;
  const std::int64_t cached = smaller(segment.rows, kPanelRows) + segment.out_rows;
  const std::int64_t width = (std::int64_t{1} << 16) / (cached > 0 ? cached : 1) / 64 * 64;
  return width < 128 ? 128 : smaller(width, 2048);
}

// y += sum of weights[i] * rows[i] over `count` rows.
template <typename T, int kCount>
void add_group(const T* const* rows, const T* weights, std::int64_t padded, bool first, T* y) {
  using Vector = typename Simd<T>::Vector;
  for (std::int64_t p = 0; p < padded; p += Simd<T>::kLanes) {
    Vector total = load(rows[0] + p) * weights[0];
    for (int i = 1; i < kCount; ++i) total += load(rows[i] + p) * weights[i];
    store(y + p, first ? total : load(y + p) + total);
  }
}

// The same for any number of rows.
template <typename T>
void add_weighted(const T* const* rows, const T* weights, std::int64_t count, std::int64_t padded, T* y) {
  if (count == 0)
    for (std::int64_t p = 0; p < padded; ++p) y[p] = 0;
  for (std::int64_t at = 0; at < count; at += kGroup) {
    const bool first = at == 0;
    switch (smaller(kGroup, count - at)) {
      case 8:
        add_group<T, 8>(rows + at, weights + at, padded, first, y);
        break;
      case 7:
        add_group<T, 7>(rows + at, weights + at, padded, first, y);
        break;
      case 6:
        add_group<T, 6>(rows + at, weights + at, padded, first, y);
        break;
      case 5:
        add_group<T, 5>(rows + at, weights + at, padded, first, y);
        break;
      case 4:
        add_group<T, 4>(rows + at, weights + at, padded, first, y);
        break;
      case 3:
        add_group<T, 3>(rows + at, weights + at, padded, first, y);
        break;
      case 2:
        add_group<T, 2>(rows + at, weights + at, padded, first, y);
        break;
      default:
        add_group<T, 1>(rows + at, weights + at, padded, first, y);
    }
  }
}

// kTileRows outputs at once; weights [count, kTileRows].
template <typename T>
void multiply(const T* const* rows, const T* weights, std::int64_t count, std::int64_t padded, T* y,
              std::int64_t pitch) {
  using Vector = typename Simd<T>::Vector;
  constexpr std::int64_t kStep = kTileVectors * Simd<T>::kLanes;
  for (std::int64_t p = 0; p < padded; p += kStep) {
    Vector sums[kTileRows][kTileVectors] = {};
    for (std::int64_t k = 0; k < count; ++k) {
      Vector x[kTileVectors];
      for (int v = 0; v < kTileVectors; ++v) x[v] = load(rows[k] + p + v * Simd<T>::kLanes);
      for (int r = 0; r < kTileRows; ++r)
        for (int v = 0; v < kTileVectors; ++v) sums[r][v] += x[v] * weights[k * kTileRows + r];
    }
    for (int r = 0; r < kTileRows; ++r)
      for (int v = 0; v < kTileVectors; ++v) store(y + r * pitch + p + v * Simd<T>::kLanes, sums[r][v]);
  }
}

template <typename T>
void write(const RowBlock& output, std::int64_t row, std::int64_t first, std::int64_t count, const T* y) {
  const std::int64_t at = row * output.row_stride + first;
  void* data = const_cast<void*>(output.data);
  switch (output.dtype) {
    case DType::kFloat64:
      for (std::int64_t p = 0; p < count; ++p) static_cast<double*>(data)[at + p] = static_cast<double>(y[p]);
      break;
    case DType::kFloat32:
      for (std::int64_t p = 0; p < count; ++p) static_cast<float*>(data)[at + p] = static_cast<float>(y[p]);
      break;
    case DType::kBFloat16:
      for (std::int64_t p = 0; p < count; ++p)
        static_cast<std::uint16_t*>(data)[at + p] = bfloat16_from_float(static_cast<float>(y[p]));
      break;
    case DType::kFloat16:
      for (std::int64_t p = 0; p < count; ++p)
        static_cast<std::uint16_t*>(data)[at + p] = float16_from_float(static_cast<float>(y[p]));
      break;
  }
}

template <typename T>
struct DTypeOf;
template <>
struct DTypeOf<float> {
  static constexpr DType kCode = DType::kFloat32;
};
template <>
struct DTypeOf<double> {
  static constexpr DType kCode = DType::kFloat64;
};

// Working memory for the tiles of one segment.
template <typename T>
struct Buffers {
  T* packed;         // [panel, pitch]
  T* y;              // [R up to whole register tiles, pitch]
  double* total;     // [R, pitch] with more than one panel
  double* centre;    // [pitch]
  T* weights;        // [panel, kTileRows]
  const T** rows;    // [panel] of the panel's rows, packed or in place
  const T** picked;  // [panel] those with a weight for one output
};

template <typename T>
class Segment {
 public:
  explicit Segment(const MixSegment& segment)
      : segment_(segment),
        panel_(smaller(segment.rows, kPanelRows)),
        width_(tile_width(segment)),
        pitch_(width_ + kTileVectors * Simd<T>::kLanes),
        in_place_(!segment.centre_columns && segment.row_offset == nullptr &&
                  (segment.reads_once || segment.out_rows < kTileRows)) {}

  Status run(std::int64_t first, std::int64_t end) {
    const std::int64_t out_rows = round_up(segment_.out_rows, kTileRows);
    const std::int64_t panels = (segment_.rows + kPanelRows - 1) / kPanelRows;
    const std::int64_t doubles = panels > 1 ? segment_.out_rows * pitch_ : 0;
    const auto size = static_cast<std::int64_t>(sizeof(T));
    Scratch scratch((panel_ + out_rows) * pitch_ * size + (doubles + pitch_) * 8 + panel_ * kTileRows * size +
                    2 * panel_ * 8);
    if (!scratch.whole()) return Status::kOutOfMemory;
    Buffers<T> buffers;
    buffers.packed = scratch.take<T>(panel_ * pitch_);
    buffers.y = scratch.take<T>(out_rows * pitch_);
    buffers.total = doubles > 0 ? scratch.take<double>(doubles) : nullptr;
    buffers.centre = scratch.take<double>(pitch_);
    buffers.weights = scratch.take<T>(panel_ * kTileRows);
    buffers.rows = scratch.take<const T*>(panel_);
    buffers.picked = scratch.take<const T*>(panel_);
    for (std::int64_t at = first; at < end; at += width_) mix_tile(at, smaller(width_, end - at), buffers);
    return Status::kOk;
  }

 private:
  void mix_tile(std::int64_t first, std::int64_t count, const Buffers<T>& buffers) {
    const std::int64_t padded = round_up(count, kTileVectors * Simd<T>::kLanes);
    if (segment_.centre_columns) find_centre(first, count, buffers);
    for (std::int64_t from = 0; from < segment_.rows || from == 0; from += kPanelRows) {
      const std::int64_t rows = smaller(kPanelRows, segment_.rows - from);
      for (std::int64_t k = 0; k < rows; ++k)
        buffers.rows[k] = row(from + k, first, count, padded, buffers, buffers.packed + k * pitch_);
      for (std::int64_t r = 0; r < segment_.out_rows; r += kTileRows)
        add_panel(r, from, rows, padded, buffers);
      if (buffers.total != nullptr) add_totals(from == 0, count, buffers);
    }
    for (std::int64_t r = 0; r < segment_.out_rows; ++r) {
      if (buffers.total != nullptr) {
        write(segment_.output, r, first, count, buffers.total + r * pitch_);
      } else {
        write(segment_.output, r, first, count, buffers.y + r * pitch_);
      }
    }
  }

  // Row k's columns, shifted; in place where nothing has to be done to them.
  const T* row(std::int64_t k, std::int64_t first, std::int64_t count, std::int64_t padded,
               const Buffers<T>& buffers, T* to) const {
    const Span& span = segment_.spans[k];
    if (in_place_ && span.dtype == DTypeOf<T>::kCode && span.stride == 1 && count == padded)
      return static_cast<const T*>(span.data) + first;
    pack(span, first, count, to);
    for (std::int64_t p = count; p < padded; ++p) to[p] = 0;
    if (segment_.centre_columns)
      for (std::int64_t p = 0; p < count; ++p) to[p] = static_cast<T>(to[p] - buffers.centre[p]);
    if (segment_.row_offset != nullptr) {
      const T offset = static_cast<T>(segment_.row_offset[k]);
      for (std::int64_t p = 0; p < count; ++p) to[p] -= offset;
    }
    return to;
  }

  void find_centre(std::int64_t first, std::int64_t count, const Buffers<T>& buffers) const {
    for (std::int64_t p = 0; p < count; ++p) buffers.centre[p] = 0;
    for (std::int64_t k = 0; k < segment_.rows; ++k) {
      pack(segment_.spans[k], first, count, buffers.packed);
      for (std::int64_t p = 0; p < count; ++p) buffers.centre[p] += static_cast<double>(buffers.packed[p]);
    }
    const double share = 1.0 / static_cast<double>(segment_.rows);
    for (std::int64_t p = 0; p < count; ++p) buffers.centre[p] *= share;
  }

  // y[r .. r + kTileRows) = the panel's part of these outputs.
  void add_panel(std::int64_t r, std::int64_t from, std::int64_t rows, std::int64_t padded,
                 const Buffers<T>& buffers) {
    const std::int64_t outputs = smaller(kTileRows, segment_.out_rows - r);
    bool dense = outputs == kTileRows;
    for (std::int64_t a = 0; a < outputs; ++a) {
      const double* weights = segment_.matrix + (r + a) * segment_.rows + from;
      for (std::int64_t k = 0; k < rows; ++k) {
        buffers.weights[k * kTileRows + a] = static_cast<T>(weights[k]);
        dense = dense && weights[k] != 0;
      }
    }
    if (dense) return multiply(buffers.rows, buffers.weights, rows, padded, buffers.y + r * pitch_, pitch_);
    for (std::int64_t a = 0; a < outputs; ++a) {
      const double* weights = segment_.matrix + (r + a) * segment_.rows + from;
      std::int64_t picked = 0;
      for (std::int64_t k = 0; k < rows; ++k) {
        if (weights[k] == 0) continue;
        buffers.picked[picked] = buffers.rows[k];
        buffers.weights[picked++] = static_cast<T>(weights[k]);
      }
      add_weighted(buffers.picked, buffers.weights, picked, padded, buffers.y + (r + a) * pitch_);
    }
  }

  void add_totals(bool first, std::int64_t count, const Buffers<T>& buffers) {
    for (std::int64_t r = 0; r < segment_.out_rows; ++r) {
      const T* y = buffers.y + r * pitch_;
      double* total = buffers.total + r * pitch_;
      for (std::int64_t p = 0; p < count; ++p) total[p] = (first ? 0 : total[p]) + static_cast<double>(y[p]);
    }
  }

  const MixSegment& segment_;
  const std::int64_t panel_;
  const std::int64_t width_;
  const std::int64_t pitch_;
  const bool in_place_;
};

Status mix_range(const MixSegment& segment, std::int64_t first, std::int64_t end) {
  return segment.output.dtype == DType::kFloat64 ? Segment<double>(segment).run(first, end)
                                                 : Segment<float>(segment).run(first, end);
}

}  // namespace

Status mix_segments(const MixSegment* segments, std::int64_t count, int threads) {
  std::int64_t columns = 0;
  for (std::int64_t s = 0; s < count; ++s) columns += segments[s].width;
  const std::int64_t tasks = smaller(64, (columns + 4095) / 4096);
  bool out_of_memory = false;
  parallel_for(tasks, threads, [&](std::int64_t task) {
    const std::int64_t unit = 64;
    const std::int64_t units = (columns + unit - 1) / unit;
    const std::int64_t begin = units * task / tasks * unit;
    const std::int64_t stop = smaller(columns, units * (task + 1) / tasks * unit);
    std::int64_t start = 0;
    for (std::int64_t s = 0; s < count; start += segments[s++].width) {
      const std::int64_t first = begin > start ? begin - start : 0;
      const std::int64_t end = smaller(segments[s].width, stop - start);
      if (first < end && mix_range(segments[s], first, end) != Status::kOk)
        __atomic_store_n(&out_of_memory, true, __ATOMIC_RELAXED);
    }
  });
  return out_of_memory ? Status::kOutOfMemory : Status::kOk;
}

}  // namespace MMFL_SIMD
}  // namespace mmfl
