// The rows are cut into tiles of columns. A tile is packed once, shifted while it is in cache, and its
// products are added in registers along the columns. README.md beside this file derives the shifts.
#include "common/simd.h"
#include "common/simd_lane_sums.h"
#include "common/simd_pack.h"
#include "common/simd_scratch.h"
#include "common/thread_pool.h"
#include "gram/gram.h"

namespace mmfl {
namespace MMFL_SIMD {
namespace {

// Rows whose tiles are multiplied with each other at a time.
constexpr std::int64_t kPanelRows = 256;
// Of one row in a tile: long enough for the sums across lanes to cost little, short enough for a whole panel
// to stay in a second-level cache of 1 MiB.
constexpr std::int64_t kTileBytes = 4096;
// One register tile: kTileRows x kTileCols dot products. 16 accumulators need the 32 registers of AVX-512.
constexpr int kTileRows = 4;
constexpr int kTileCols = MMFL_SIMD_BYTES == 64 ? 4 : 2;

// Vectors added side by side in a sum along a row, to hide the latency of an addition.
constexpr int kUnroll = 4;

constexpr double kNan = __builtin_nan("");

std::int64_t smaller(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
std::int64_t larger(std::int64_t a, std::int64_t b) { return a > b ? a : b; }

// How the work is cut: from the shape and the compute type alone, so that results do not depend on threads.
struct Cut {
  std::int64_t width;  // columns of a tile
  std::int64_t pitch;  // elements between rows of a packed tile
  std::int64_t tiles;
  std::int64_t chunks;  // runs of tiles that are summed apart
  std::int64_t panels;

  std::int64_t first_tile(std::int64_t chunk) const { return tiles * chunk / chunks; }
};

template <typename T>
Cut cut_for(std::int64_t rows, std::int64_t columns) {
  Cut cut;
  cut.width = kTileBytes / static_cast<std::int64_t>(sizeof(T));
  // One more cache line, so that the rows of a register tile do not compete for the same cache set.
  cut.pitch = cut.width + 64 / static_cast<std::int64_t>(sizeof(T));
  cut.tiles = larger(1, (columns + cut.width - 1) / cut.width);
  // Partial sums take at most 8 MiB until K^2 alone is more.
  cut.chunks = smaller(cut.tiles, larger(1, smaller(64, (std::int64_t{1} << 20) / (rows * rows))));
  cut.panels = (rows + kPanelRows - 1) / kPanelRows;
  return cut;
}

// Column ranges of a tile: `count` columns from `first`, packed to `padded` with zeros behind.
struct Columns {
  std::int64_t first;
  std::int64_t count;
  std::int64_t padded;
  std::int64_t segment;  // that holds `first`
};

template <typename T>
Columns columns_of(const GramRows& args, const Cut& cut, std::int64_t tile) {
  Columns columns;
  columns.first = tile * cut.width;
  columns.count = smaller(cut.width, args.starts[args.segments] - columns.first);
  columns.padded = round_up(columns.count, kUnroll * Simd<T>::kLanes);
  std::int64_t low = 0, high = args.segments;
  while (high - low > 1) {
    const std::int64_t middle = (low + high) / 2;
    if (args.starts[middle] <= columns.first) {
      low = middle;
    } else {
      high = middle;
    }
  }
  columns.segment = low;
  return columns;
}

// Asks for the columns that follow in the next tile, so that they arrive while this one is multiplied. Rows
// are read in short runs, which the processor's own prefetching does not follow. Inlined by force: GCC takes
// a function that only prefetches for one without effect and drops the call.
__attribute__((always_inline)) inline void prefetch_next(const Span& span, std::int64_t first,
                                                         std::int64_t count) {
  if (span.stride != 1) return;
  const std::int64_t size = span.dtype == DType::kFloat64 ? 8 : span.dtype == DType::kFloat32 ? 4 : 2;
  const char* from = static_cast<const char*>(span.data) + (first + count) * size;
  for (std::int64_t at = 0; at < count * size; at += 64) __builtin_prefetch(from + at, 0, 2);
}

// One row's columns, across the segments they lie in.
template <typename T>
void pack_row(const GramRows& args, const Span* spans, const Columns& columns, T* to) {
  const std::int64_t end = columns.first + columns.count;
  std::int64_t s = columns.segment;
  for (std::int64_t at = columns.first; at < end; ++s) {
    const std::int64_t stop = smaller(end, args.starts[s + 1]);
    if (stop > at) {
      pack(spans[s], at - args.starts[s], stop - at, to + (at - columns.first));
      prefetch_next(spans[s], at - args.starts[s], stop - at);
      at = stop;
    }
  }
  for (std::int64_t p = columns.count; p < columns.padded; ++p) to[p] = 0;
}

// A panel's rows of one tile, with what centring them needs.
template <typename T>
struct Panel {
  static std::int64_t bytes(std::int64_t rows, std::int64_t pitch) {
    return round_up(rows, kTileRows) * (pitch * static_cast<std::int64_t>(sizeof(T)) + 6 * 8 + 1);
  }

  void place(std::int64_t number, std::int64_t rows, std::int64_t pitch) {
    first = number * kPanelRows;
    count = smaller(kPanelRows, rows - first);
    padded = round_up(count, kTileRows);
    for (std::int64_t r = 0; r < padded; ++r) {
      bad[r] = 0;
      sum[r] = mean[r] = between[r] = step[r] = residue[r] = 0;
    }
    for (std::int64_t at = count * pitch; at < padded * pitch; ++at) tile[at] = 0;
  }

  std::int64_t first;  // row
  std::int64_t count;
  std::int64_t padded;  // to whole register tiles; the rows behind `count` stay zero
  T* tile;              // [padded, pitch]
  const T** finite;     // [padded] packed rows without a non-finite element
  std::int64_t finite_count;
  unsigned char* bad;  // [padded] rows that had a non-finite element in any tile of the chunk
  double* sum;         // [padded] of the row's elements in the tile as packed
  double* mean;        // [padded] of the row over the chunk's tiles so far
  double* between;     // [padded] weight * (the tile's mean - the mean so far)
  double* step;        // [padded] the tile's mean - the mean so far
  double* residue;     // [padded] sum of the row's elements in the tile as shifted
};

template <typename T>
double total(const typename Simd<T>::Vector (&sums)[kUnroll]) {
  return static_cast<double>(sum((sums[0] + sums[1]) + (sums[2] + sums[3])));
}

template <typename T>
void load_rows(const GramRows& args, const Columns& columns, const T* origin, std::int64_t pitch,
               Panel<T>& panel) {
  using Vector = typename Simd<T>::Vector;
  panel.finite_count = 0;
  // Some row to point at when none is finite.
  panel.finite[0] = panel.tile;
  for (std::int64_t r = 0; r < panel.count; ++r) {
    T* row = panel.tile + r * pitch;
    pack_row(args, args.spans + (panel.first + r) * args.segments, columns, row);
    Vector probes[kUnroll] = {}, sums[kUnroll] = {};
    for (std::int64_t p = 0; p < columns.padded; p += kUnroll * Simd<T>::kLanes) {
      for (int u = 0; u < kUnroll; ++u) {
        const std::int64_t at = p + u * Simd<T>::kLanes;
        Vector x = load(row + at);
        if (origin != nullptr) store(row + at, x -= load(origin + at));
        // Zero for every finite x, NaN for the others; a sum could overflow.
        probes[u] += x * T(0);
        sums[u] += x;
      }
    }
    panel.sum[r] = total<T>(sums);
    if (total<T>(probes) == 0) {
      panel.finite[panel.finite_count++] = row;
    } else {
      panel.bad[r] = 1;
    }
  }
}

// Adds scale * (row - pivot) of the panel's finite rows to `total`. Differences from a row, so that the mean
// of equal rows is that row to the last bit.
template <typename T>
void add_rows(const Panel<T>& panel, const T* pivot, std::int64_t padded, T scale, T* total) {
  using Vector = typename Simd<T>::Vector;
  std::int64_t r = 0;
  for (; r + 4 <= panel.finite_count; r += 4) {
    const T *a = panel.finite[r], *b = panel.finite[r + 1], *c = panel.finite[r + 2],
            *d = panel.finite[r + 3];
    for (std::int64_t p = 0; p < padded; p += Simd<T>::kLanes) {
      const Vector zero = load(pivot + p);
      store(total + p, load(total + p) + (((load(a + p) - zero) + (load(b + p) - zero)) +
                                          ((load(c + p) - zero) + (load(d + p) - zero))) *
                                             scale);
    }
  }
  for (; r < panel.finite_count; ++r)
    for (std::int64_t p = 0; p < padded; p += Simd<T>::kLanes)
      store(total + p, load(total + p) + (load(panel.finite[r] + p) - load(pivot + p)) * scale);
}

// Subtracts the common shift and, with centre_rows, each row's mean in the tile.
template <typename T>
void shift_rows(const GramRows& args, const Columns& columns, const T* common, std::int64_t pitch,
                std::int64_t columns_before, Panel<T>& panel) {
  using Vector = typename Simd<T>::Vector;
  double common_sum = 0;
  if (common != nullptr && args.centre_rows) {
    Vector sums[kUnroll] = {};
    for (std::int64_t p = 0; p < columns.padded; p += Simd<T>::kLanes) sums[0] += load(common + p);
    common_sum = total<T>(sums);
  }
  const double count = static_cast<double>(columns.count);
  const double share = count / (static_cast<double>(columns_before) + count);
  for (std::int64_t r = 0; r < panel.count; ++r) {
    T* row = panel.tile + r * pitch;
    const T own = args.centre_rows ? static_cast<T>((panel.sum[r] - common_sum) / count) : T(0);
    // So that the columns behind the tile's own become zero again.
    for (std::int64_t p = columns.count; p < columns.padded; ++p) row[p] = own;
    Vector sums[kUnroll] = {};
    for (std::int64_t p = 0; p < columns.padded; p += kUnroll * Simd<T>::kLanes) {
      for (int u = 0; u < kUnroll; ++u) {
        const std::int64_t at = p + u * Simd<T>::kLanes;
        Vector x = load(row + at);
        if (common != nullptr) x -= load(common + at);
        x -= own;
        store(row + at, x);
        sums[u] += x;
      }
    }
    if (!args.centre_rows) continue;
    const double residue = total<T>(sums);
    // Chan, Golub and LeVeque (1983): sums of products about the mean, joined with those of earlier columns.
    const double step = static_cast<double>(own) + residue / count - panel.mean[r];
    panel.mean[r] += share * step;
    panel.step[r] = step;
    panel.between[r] = step * static_cast<double>(columns_before) * share;
    panel.residue[r] = residue;
  }
}

// total[i][j] += the inner products of kTileRows packed rows with kTileCols others.
template <typename T>
inline void multiply(const T* left, const T* right, std::int64_t pitch, std::int64_t padded, T* products) {
  using Vector = typename Simd<T>::Vector;
  Vector sums[kTileRows * kTileCols] = {};
  for (std::int64_t p = 0; p < padded; p += Simd<T>::kLanes) {
    Vector b[kTileCols];
    for (int j = 0; j < kTileCols; ++j) b[j] = load(right + j * pitch + p);
    for (int i = 0; i < kTileRows; ++i) {
      const Vector a = load(left + i * pitch + p);
      for (int j = 0; j < kTileCols; ++j) sums[i * kTileCols + j] += a * b[j];
    }
  }
  for (int at = 0; at < kTileRows * kTileCols; at += Simd<T>::kLanes)
    store(products + at, lane_sums<T>(sums + at));
}

// partial[i, j] += the tile's products; above and on the diagonal of the whole matrix.
template <typename T>
void add_products(const Panel<T>& left, const Panel<T>& right, const Columns& columns, std::int64_t pitch,
                  bool centre_rows, double* partial, std::int64_t partial_pitch) {
  const bool diagonal = left.first == right.first;
  const double inverse_count = 1.0 / static_cast<double>(columns.count);
  for (std::int64_t i = 0; i < left.padded; i += kTileRows) {
    for (std::int64_t j = diagonal ? i / kTileCols * kTileCols : 0; j < right.padded; j += kTileCols) {
      T products[kTileRows * kTileCols];
      multiply(left.tile + i * pitch, right.tile + j * pitch, pitch, columns.padded, products);
      for (int a = 0; a < kTileRows; ++a) {
        double* to = partial + (i + a) * partial_pitch + j;
        for (int b = 0; b < kTileCols; ++b) to[b] += static_cast<double>(products[a * kTileCols + b]);
        if (!centre_rows) continue;
        const double between = left.between[i + a], residue = left.residue[i + a] * inverse_count;
        for (int b = 0; b < kTileCols; ++b)
          to[b] += between * right.step[j + b] - residue * right.residue[j + b];
      }
    }
  }
}

// The centroid from the sum that add_rows formed with scale 1 / rows, when only `finite` rows were added.
template <typename T>
void finish_centroid(const T* pivot, std::int64_t padded, std::int64_t rows, std::int64_t finite, T* total) {
  if (finite == 0) return;
  const T factor = static_cast<T>(rows) / static_cast<T>(finite);
  for (std::int64_t p = 0; p < padded; ++p) total[p] = pivot[p] + total[p] * factor;
}

template <typename T>
Panel<T> make_panel(std::int64_t rows, std::int64_t pitch, Scratch& scratch) {
  const std::int64_t padded = round_up(rows, kTileRows);
  Panel<T> panel{};
  panel.tile = scratch.take<T>(padded * pitch);
  panel.finite = scratch.take<const T*>(padded);
  panel.sum = scratch.take<double>(padded);
  panel.mean = scratch.take<double>(padded);
  panel.between = scratch.take<double>(padded);
  panel.step = scratch.take<double>(padded);
  panel.residue = scratch.take<double>(padded);
  panel.bad = scratch.take<unsigned char>(padded);
  return panel;
}

template <typename T>
class Gram {
 public:
  explicit Gram(const GramRows& args)
      : args_(args),
        rows_(args.rows),
        columns_(args.starts[args.segments]),
        cut_(cut_for<T>(rows_, columns_)),
        side_(cut_.panels > 1 ? cut_.panels * kPanelRows : round_up(rows_, kTileRows)) {}

  Status run() {
    if (columns_ == 0) {
      for (std::int64_t at = 0; at < rows_ * rows_; ++at) args_.gram[at] = 0;
      for (std::int64_t i = 0; i < rows_; ++i) args_.row_mean[i] = 0;
      return Status::kOk;
    }
    const std::int64_t shift = cut_.panels > 1 && args_.mean_origin ? round_up(columns_, 64) : 0;
    const std::int64_t doubles = cut_.chunks * side_ * (side_ + 1) + cut_.chunks + side_;
    Scratch scratch(doubles * 8 + shift * static_cast<std::int64_t>(sizeof(T)) + (cut_.chunks + 1) * side_);
    if (!scratch.whole()) return Status::kOutOfMemory;
    partial_ = scratch.take<double>(cut_.chunks * side_ * side_);
    chunk_mean_ = scratch.take<double>(cut_.chunks * side_);
    weight_ = scratch.take<double>(cut_.chunks);
    average_ = scratch.take<double>(side_);
    chunk_bad_ = scratch.take<unsigned char>(cut_.chunks * side_);
    bad_ = scratch.take<unsigned char>(side_);

    if (shift > 0) {
      shift_ = scratch.take<T>(shift);
      parallel_for(cut_.tiles, args_.threads, [this](std::int64_t tile) { find_shift(tile); });
    }
    const std::int64_t pairs = cut_.panels * (cut_.panels + 1) / 2;
    parallel_for(pairs * cut_.chunks, args_.threads,
                 [this](std::int64_t task) { multiply_chunk(task / cut_.chunks, task % cut_.chunks); });
    if (out_of_memory()) return Status::kOutOfMemory;
    join_row_means();
    parallel_for(rows_, args_.threads, [this](std::int64_t i) { join_chunks(i); });
    if (args_.mean_origin) centre_on_finite_rows();
    return Status::kOk;
  }

 private:
  bool out_of_memory() { return __atomic_load_n(&out_of_memory_, __ATOMIC_RELAXED); }
  void set_out_of_memory() { __atomic_store_n(&out_of_memory_, true, __ATOMIC_RELAXED); }

  // The origin's packed columns; null when there is none.
  const T* pack_origin(const Columns& columns, T* to) const {
    if (args_.origin == nullptr) return nullptr;
    pack_row(args_, args_.origin, columns, to);
    return to;
  }

  // shift = mean over all finite rows, read panel by panel. For one panel multiply_chunk finds it in passing.
  void find_shift(std::int64_t tile) {
    Scratch scratch(Panel<T>::bytes(kPanelRows, cut_.pitch) +
                    cut_.pitch * static_cast<std::int64_t>(sizeof(T)));
    if (!scratch.whole()) return set_out_of_memory();
    const Columns columns = columns_of<T>(args_, cut_, tile);
    T* total = shift_ + columns.first;
    // The last tile's zeros behind its columns stay inside shift_, whose size is rounded up.
    for (std::int64_t p = 0; p < columns.padded; ++p) total[p] = 0;
    std::int64_t finite = 0;
    T* pivot = scratch.take<T>(cut_.pitch);
    Panel<T> panel = make_panel<T>(kPanelRows, cut_.pitch, scratch);
    for (std::int64_t number = 0; number < cut_.panels; ++number) {
      panel.place(number, rows_, cut_.pitch);
      load_rows<T>(args_, columns, nullptr, cut_.pitch, panel);
      if (finite == 0 && panel.finite_count > 0)
        for (std::int64_t p = 0; p < columns.padded; ++p) pivot[p] = panel.finite[0][p];
      add_rows(panel, pivot, columns.padded, T(1) / static_cast<T>(rows_), total);
      finite += panel.finite_count;
    }
    finish_centroid(pivot, columns.padded, rows_, finite, total);
  }

  void multiply_chunk(std::int64_t pair, std::int64_t chunk) {
    std::int64_t left_number = 0;
    while (pair >= cut_.panels - left_number) pair -= cut_.panels - left_number++;
    const std::int64_t right_number = left_number + pair;
    const bool diagonal = pair == 0;

    const std::int64_t panel_rows = smaller(rows_, kPanelRows);
    Scratch scratch((diagonal ? 1 : 2) * Panel<T>::bytes(panel_rows, cut_.pitch) +
                    2 * cut_.pitch * static_cast<std::int64_t>(sizeof(T)));
    if (!scratch.whole()) return set_out_of_memory();
    Panel<T> left = make_panel<T>(panel_rows, cut_.pitch, scratch);
    left.place(left_number, rows_, cut_.pitch);
    Panel<T> other = left;
    if (!diagonal) {
      other = make_panel<T>(panel_rows, cut_.pitch, scratch);
      other.place(right_number, rows_, cut_.pitch);
    }
    const Panel<T>& right = diagonal ? left : other;
    T* origin_columns = scratch.take<T>(cut_.pitch);
    T* mean_columns = scratch.take<T>(cut_.pitch);

    double* partial = partial_ + (chunk * side_ + left.first) * side_ + right.first;
    for (std::int64_t i = 0; i < left.padded; ++i)
      for (std::int64_t j = 0; j < right.padded; ++j) partial[i * side_ + j] = 0;

    std::int64_t before = 0;
    for (std::int64_t tile = cut_.first_tile(chunk); tile < cut_.first_tile(chunk + 1); ++tile) {
      const Columns columns = columns_of<T>(args_, cut_, tile);
      const T* origin = pack_origin(columns, origin_columns);
      load_rows(args_, columns, origin, cut_.pitch, left);
      const T* common = nullptr;
      if (shift_ != nullptr) {
        common = shift_ + columns.first;
      } else if (args_.mean_origin) {
        for (std::int64_t p = 0; p < columns.padded; ++p) mean_columns[p] = 0;
        add_rows(left, left.finite[0], columns.padded, T(1) / static_cast<T>(rows_), mean_columns);
        finish_centroid(left.finite[0], columns.padded, rows_, left.finite_count, mean_columns);
        common = mean_columns;
      }
      if (common != nullptr || args_.centre_rows)
        shift_rows(args_, columns, common, cut_.pitch, before, left);
      if (!diagonal) {
        load_rows(args_, columns, origin, cut_.pitch, other);
        if (common != nullptr || args_.centre_rows)
          shift_rows(args_, columns, common, cut_.pitch, before, other);
      }
      add_products(left, right, columns, cut_.pitch, args_.centre_rows, partial, side_);
      before += columns.count;
    }
    if (!diagonal) return;
    for (std::int64_t r = 0; r < left.count; ++r) {
      chunk_mean_[chunk * side_ + left.first + r] = left.mean[r];
      chunk_bad_[chunk * side_ + left.first + r] = left.bad[r];
    }
  }

  // Row means over all columns from those of the chunks. chunk_mean becomes the chunk's mean less the mean
  // of the chunks before it, weight the factor of two rows' such differences in their joined product.
  void join_row_means() {
    double before = 0;
    for (std::int64_t i = 0; i < rows_; ++i) {
      args_.row_mean[i] = 0;
      bad_[i] = 0;
    }
    for (std::int64_t chunk = 0; chunk < cut_.chunks; ++chunk) {
      const std::int64_t first = cut_.first_tile(chunk) * cut_.width;
      const std::int64_t end = smaller(columns_, cut_.first_tile(chunk + 1) * cut_.width);
      const double count = static_cast<double>(end - first);
      const double share = count / (before + count);
      weight_[chunk] = args_.centre_rows ? before * share : 0;
      for (std::int64_t i = 0; i < rows_; ++i) {
        double& step = chunk_mean_[chunk * side_ + i];
        step -= args_.row_mean[i];
        args_.row_mean[i] += share * step;
        bad_[i] |= chunk_bad_[chunk * side_ + i];
      }
      before += count;
    }
    for (std::int64_t i = 0; i < rows_; ++i)
      if (bad_[i] && args_.centre_rows) args_.row_mean[i] = kNan;
  }

  void join_chunks(std::int64_t i) {
    for (std::int64_t j = i; j < rows_; ++j) {
      double total = 0;
      for (std::int64_t chunk = 0; chunk < cut_.chunks; ++chunk) {
        const double* step = chunk_mean_ + chunk * side_;
        total += partial_[(chunk * side_ + i) * side_ + j] + weight_[chunk] * step[i] * step[j];
      }
      if (bad_[i] || bad_[j]) total = kNan;
      args_.gram[i * rows_ + j] = total;
      args_.gram[j * rows_ + i] = total;
    }
  }

  // The tiles were shifted by a rounded centroid; this removes what is left of it, in double.
  void centre_on_finite_rows() {
    double finite = 0, mean = 0, grand = 0;
    for (std::int64_t i = 0; i < rows_; ++i) finite += bad_[i] ? 0 : 1;
    parallel_for(rows_, args_.threads, [&](std::int64_t i) {
      double total = 0;
      for (std::int64_t j = 0; j < rows_; ++j)
        if (!bad_[j]) total += args_.gram[i * rows_ + j];
      average_[i] = total / finite;
    });
    for (std::int64_t i = 0; i < rows_; ++i) {
      if (bad_[i]) continue;
      mean += args_.row_mean[i] / finite;
      grand += average_[i] / finite;
    }
    parallel_for(rows_, args_.threads, [&](std::int64_t i) {
      double* line = args_.gram + i * rows_;
      for (std::int64_t j = 0; j < rows_; ++j) line[j] = line[j] - (average_[i] + average_[j]) + grand;
      if (line[i] < 0) line[i] = 0;
    });
    if (args_.centre_rows)
      for (std::int64_t i = 0; i < rows_; ++i) args_.row_mean[i] -= mean;
  }

  const GramRows& args_;
  const std::int64_t rows_;
  const std::int64_t columns_;
  const Cut cut_;
  const std::int64_t side_;             // of a chunk's matrix
  double* partial_ = nullptr;           // [chunks, side, side]
  double* chunk_mean_ = nullptr;        // [chunks, side]
  double* weight_ = nullptr;            // [chunks]
  double* average_ = nullptr;           // [side] of the finite entries of a row of the Gram matrix
  T* shift_ = nullptr;                  // [P] the centroid, when there is more than one panel
  unsigned char* chunk_bad_ = nullptr;  // [chunks, side]
  unsigned char* bad_ = nullptr;        // [side] rows with a non-finite element
  bool out_of_memory_ = false;
};

}  // namespace

Status gram_in_float(const GramRows& args) { return Gram<float>(args).run(); }
Status gram_in_double(const GramRows& args) { return Gram<double>(args).run(); }

}  // namespace MMFL_SIMD
}  // namespace mmfl
