// The rows are cut into tiles of columns. A tile is read and packed once, shifted while it is in cache, and
// its products are added in registers along the columns. README.md beside this file derives the shifts.
#include "common/simd.h"
#include "common/simd_flag.h"
#include "common/simd_scratch.h"
#include "common/thread_pool.h"
#include "gram/gram.h"
#include "gram/gram_cpu_panel.h"
#include "gram/gram_cpu_prefetch.h"
#include "gram/gram_cpu_products.h"
#include "gram/gram_cpu_rows.h"

namespace mmfl {
namespace MMFL_SIMD {
namespace {

constexpr double kNan = __builtin_nan("");

// How the work is cut: from the shape and the compute type alone, so that results do not depend on threads.
struct Cut {
  std::int64_t width;  // columns of a tile
  std::int64_t tiles;
  std::int64_t chunks;  // runs of tiles that are summed apart
  std::int64_t panels;

  std::int64_t first_tile(std::int64_t chunk) const { return tiles * chunk / chunks; }
};

template <typename T>
Cut cut_for(std::int64_t rows, std::int64_t columns) {
  Cut cut;
  cut.width = (one_group(rows) ? kGroupTileBlocks : kTileBlocks) * kBlock<T>;
  cut.tiles = larger(1, (columns + cut.width - 1) / cut.width);
  // Partial sums take at most 8 MiB until K^2 alone is more.
  cut.chunks = smaller(cut.tiles, larger(1, smaller(64, (std::int64_t{1} << 20) / (rows * rows))));
  cut.panels = (rows + kPanelRows - 1) / kPanelRows;
  return cut;
}

// A matrix of doubles.
struct Partial {
  double* data;
  std::int64_t pitch;
};

// partial[i, j] += the tile's products of a quad of `left` with one of `right`.
template <typename T>
void finish(const typename Simd<T>::Vector* lanes, const Panel<T>& left, std::int64_t left_quad,
            const Panel<T>& right, std::int64_t right_quad, const Tile& tile, bool centre_rows,
            Partial partial) {
  const double inverse_count = 1.0 / static_cast<double>(tile.count);
  T products[kQuad][kQuad];
  sum_lanes<T>(lanes, products);
  for (int i = 0; i < kQuad; ++i) {
    const std::int64_t row = left_quad * kQuad + i, others = right_quad * kQuad;
    double* to = partial.data + row * partial.pitch + others;
    for (int j = 0; j < kQuad; ++j) to[j] += static_cast<double>(products[i][j]);
    if (!centre_rows) continue;
    const double between = left.between[row], residue = left.residue[row] * inverse_count;
    for (int j = 0; j < kQuad; ++j)
      to[j] += between * right.step[others + j] - residue * right.residue[others + j];
  }
}

// The products of one group of quads with another in a tile; of a group with itself, those of different
// quads.
template <typename T>
class Group {
 public:
  Group(const Panel<T>& left, std::int64_t left_quad, const Panel<T>& right, std::int64_t right_quad)
      : left_(left),
        right_(right),
        left_quad_(left_quad),
        right_quad_(right_quad),
        left_end_(smaller(left.quads, left_quad + kGroup)),
        right_end_(smaller(right.quads, right_quad + kGroup)),
        diagonal_(&left == &right && left_quad == right_quad) {}

  // Adds the columns of a block that starts `at` columns into the tile.
  void add(const Tile& tile, std::int64_t at, Prefetch& prefetch) {
    const std::int64_t count = smaller(kBlock<T>, tile.count - at);
    const std::int64_t vectors = (count + Simd<T>::kLanes - 1) / Simd<T>::kLanes;
    Vector* products = lanes_;
    for (std::int64_t q = left_quad_; q < left_end_; ++q) {
      for (std::int64_t r = diagonal_ ? q + 1 : right_quad_; r < right_end_; ++r, products += kProducts) {
        multiply_quads<T>(left_.packed(at, q), right_.packed(at, r), vectors, at == 0, products, prefetch);
        prefetch.step();
      }
    }
  }

  void finish(const Tile& tile, bool centre_rows, Partial partial) const {
    const Vector* lanes = lanes_;
    for (std::int64_t q = left_quad_; q < left_end_; ++q)
      for (std::int64_t r = diagonal_ ? q + 1 : right_quad_; r < right_end_; ++r, lanes += kProducts)
        MMFL_SIMD::finish<T>(lanes, left_, q, right_, r, tile, centre_rows, partial);
  }

 private:
  using Vector = typename Simd<T>::Vector;
  static constexpr int kProducts = kQuad * kQuad;

  const Panel<T>& left_;
  const Panel<T>& right_;
  const std::int64_t left_quad_, right_quad_, left_end_, right_end_;
  const bool diagonal_;
  Vector lanes_[kGroup * kGroup * kProducts];
};

template <typename T>
class Gram {
 public:
  explicit Gram(const GramRows& args)
      : args_(args),
        rows_(args.rows),
        columns_(args.starts[args.segments]),
        cut_(cut_for<T>(rows_, columns_)),
        side_(cut_.panels > 1 ? cut_.panels * kPanelRows : round_up(rows_, kQuad)) {}

  Status run() {
    if (columns_ == 0) {
      for (std::int64_t at = 0; at < rows_ * rows_; ++at) args_.gram[at] = 0;
      for (std::int64_t i = 0; i < rows_; ++i) args_.row_mean[i] = 0;
      return Status::kOk;
    }
    const std::int64_t centroid = cut_.panels > 1 && args_.mean_origin ? round_up(columns_, 64) : 0;
    const std::int64_t doubles = cut_.chunks * side_ * (side_ + 1) + cut_.chunks + side_;
    Scratch scratch(doubles * 8 + centroid * static_cast<std::int64_t>(sizeof(T)) +
                    (cut_.chunks + 1) * side_);
    if (!scratch.whole()) return Status::kOutOfMemory;
    partial_ = scratch.take<double>(cut_.chunks * side_ * side_);
    chunk_mean_ = scratch.take<double>(cut_.chunks * side_);
    weight_ = scratch.take<double>(cut_.chunks);
    average_ = scratch.take<double>(side_);
    chunk_bad_ = scratch.take<unsigned char>(cut_.chunks * side_);
    bad_ = scratch.take<unsigned char>(side_);

    if (centroid > 0) {
      centroid_ = scratch.take<T>(centroid);
      parallel_for(cut_.tiles, args_.threads, [this](std::int64_t tile) { find_centroid(tile); });
    }
    const std::int64_t pairs = cut_.panels * (cut_.panels + 1) / 2;
    parallel_for(pairs * cut_.chunks, args_.threads,
                 [this](std::int64_t task) { multiply_chunk(task / cut_.chunks, task % cut_.chunks); });
    if (out_of_memory_.raised()) return Status::kOutOfMemory;
    join_row_means();
    parallel_for(rows_, args_.threads, [this](std::int64_t i) { join_chunks(i); });
    if (args_.mean_origin) centre_on_finite_rows();
    return Status::kOk;
  }

 private:
  // centroid = mean over all finite rows. For one panel multiply_chunk finds it in passing.
  void find_centroid(std::int64_t tile) {
    Scratch scratch(BlockRows<T>::bytes(rows_));
    if (!scratch.whole()) return out_of_memory_.raise();
    BlockRows<T> rows(args_, 0, rows_, scratch);
    Prefetch none;
    const std::int64_t end = smaller(columns_, (tile + 1) * cut_.width);
    for (std::int64_t first = tile * cut_.width; first < end; first += kBlock<T>) {
      const Block block = block_at<T>(args_, first);
      rows.locate(block, none);
      rows.centroid(block.vectors, centroid_ + first);
    }
  }

  void multiply_chunk(std::int64_t pair, std::int64_t chunk) {
    std::int64_t left_number = 0;
    while (pair >= cut_.panels - left_number) pair -= cut_.panels - left_number++;
    const bool diagonal = pair == 0;
    const std::int64_t panel_rows = smaller(rows_, kPanelRows);
    Scratch scratch((diagonal ? 1 : 2) * Panel<T>::bytes(panel_rows));
    if (!scratch.whole()) return out_of_memory_.raise();
    Panel<T> left(args_, left_number, centroid_, scratch);
    if (diagonal) {
      multiply_panels(left, left, chunk);
      for (std::int64_t r = 0; r < left.count; ++r) {
        chunk_mean_[chunk * side_ + left.first + r] = left.mean[r];
        chunk_bad_[chunk * side_ + left.first + r] = left.bad(r);
      }
    } else {
      Panel<T> right(args_, left_number + pair, centroid_, scratch);
      multiply_panels(left, right, chunk);
    }
  }

  void multiply_panels(Panel<T>& left, Panel<T>& right, std::int64_t chunk) {
    const bool diagonal = &left == &right;
    const Partial partial{partial_ + (chunk * side_ + left.first) * side_ + right.first, side_};
    for (std::int64_t i = 0; i < left.quads * kQuad; ++i)
      for (std::int64_t j = 0; j < right.quads * kQuad; ++j) partial.data[i * side_ + j] = 0;
    const std::int64_t first = cut_.first_tile(chunk) * cut_.width;
    const std::int64_t end = smaller(columns_, cut_.first_tile(chunk + 1) * cut_.width);
    for (std::int64_t at = first; at < end; at += cut_.width) {
      const Tile tile{at, smaller(cut_.width, end - at)};
      if (one_group(rows_)) {
        Group<T> group(left, 0, left, 0);
        for (std::int64_t block = 0; block < tile.count; block += kBlock<T>) {
          const std::int64_t following = at + block + kBlock<T>;
          const NextBlock next(args_, smaller(following, end - 1));
          Prefetch prefetch = following < end ? Prefetch(next) : Prefetch();
          left.pack(tile, block, prefetch);
          group.add(tile, block, prefetch);
        }
        if (args_.centre_rows) left.join_means(tile);
        group.finish(tile, args_.centre_rows, partial);
        finish_quads(left, tile, partial);
        continue;
      }
      const std::int64_t next = at + tile.count;
      const std::int64_t pairs = diagonal ? left.quads * (left.quads + 1) / 2 : left.quads * right.quads;
      Prefetch prefetch(args_, left.first, left.count, next, smaller(cut_.width, end - next),
                        pairs * cut_.width / kBlock<T>);
      pack(left, tile, prefetch);
      if (!diagonal) pack(right, tile, prefetch);
      for (std::int64_t q = 0; q < left.quads; q += kGroup) {
        for (std::int64_t r = diagonal ? q : 0; r < right.quads; r += kGroup) {
          Group<T> group(left, q, right, r);
          for (std::int64_t block = 0; block < tile.count; block += kBlock<T>)
            group.add(tile, block, prefetch);
          group.finish(tile, args_.centre_rows, partial);
        }
      }
      if (diagonal) finish_quads(left, tile, partial);
    }
  }

  void pack(Panel<T>& panel, const Tile& tile, Prefetch& prefetch) {
    for (std::int64_t block = 0; block < tile.count; block += kBlock<T>) panel.pack(tile, block, prefetch);
    if (args_.centre_rows) panel.join_means(tile);
  }

  void finish_quads(const Panel<T>& panel, const Tile& tile, Partial partial) {
    for (std::int64_t q = 0; q < panel.quads; ++q)
      finish<T>(panel.products(q), panel, q, panel, q, tile, args_.centre_rows, partial);
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
  T* centroid_ = nullptr;               // [P] when there is more than one panel
  unsigned char* chunk_bad_ = nullptr;  // [chunks, side]
  unsigned char* bad_ = nullptr;        // [side] rows with a non-finite element
  Flag out_of_memory_;
};

}  // namespace

Status gram_in_float(const GramRows& args) { return Gram<float>(args).run(); }
Status gram_in_double(const GramRows& args) { return Gram<double>(args).run(); }

}  // namespace MMFL_SIMD
}  // namespace mmfl
