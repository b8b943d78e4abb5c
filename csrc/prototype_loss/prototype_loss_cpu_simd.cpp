// Logits exist for one tile of rows at a time: the forward keeps a running log-sum-exp, the backward makes
// them again. A group is the rows that share prototypes. Its backward cuts them in parts, each with a sum of
// the prototype gradient to itself, so that threads have nothing to tell each other until the sums are added
// in order. A part goes over its rows in chunks: tiles of rows first, which leave their weights dloss/dlogit
// and finish their feature gradients; then blocks of the prototype gradient, each adding the chunk. Where
// there are fewer parts than threads, the tiles and blocks go side by side. No two tasks write one place.
//
// Only prototypes are scaled to unit length in memory. A feature row stays where it is, and its inverse
// length goes into its logits and weights.
#include "common/simd_flag.h"
#include "common/simd_multiply.h"
#include "common/thread_pool.h"
#include "prototype_loss/prototype_loss_simd_softmax.h"

namespace mmfl {
namespace MMFL_SIMD {
namespace {

constexpr std::int64_t kClassBlock = 256;    // classes whose logits the forward holds
constexpr std::int64_t kClassesOfTask = 64;  // of the prototype gradient
// Rows whose weights are held: a sixteenth of the group's and a quarter of each part's, so that memory stays
// below N x C.
constexpr std::int64_t kChunkShare = 16;
constexpr std::int64_t kChunksOfPart = 4;
constexpr std::int64_t kLargestChunk = 256;
// The least rows of a part. So many for every class let the sums of all parts take a fifth of the memory of
// the features in float; a large N x C leaves one part.
constexpr std::int64_t kPartRows = 512;
constexpr std::int64_t kPartRowsPerClass = 10;
constexpr std::int64_t kMostParts = 16;

// A power of two, which most numbers of threads divide.
inline std::int64_t parts_of(std::int64_t rows, std::int64_t classes) {
  const std::int64_t by_class = kPartRowsPerClass * classes;
  const std::int64_t fewest = by_class > kPartRows ? by_class : kPartRows;
  std::int64_t parts = 1;
  while (parts < kMostParts && rows >= 2 * parts * fewest) parts *= 2;
  return parts;
}

template <typename T>
class Group {
 public:
  Group(const PrototypeLossArgs& args, std::int64_t number)
      : args_(args),
        number_(number),
        clients_(args.clients / args.groups),
        rows_(clients_ * args.rows),
        pitch_(pitch_for<T>(args.dims)),
        columns_(round_up(args.dims, kLanes)),
        classes_(round_up(args.classes, kLanes)),
        scale_(static_cast<T>(1 / args.temperature)),
        panel_scratch_(round_up(classes_, kPanel) * columns_ * kSize),
        panels_(panel_scratch_.template take<T>(round_up(classes_, kPanel) * columns_)) {}

  bool forward(T* loss, T* log_sum) {
    if (!panel_scratch_.whole()) return false;
    Flag failed;
    parallel_for(panels(), args_.threads, [&](std::int64_t panel) {
      Scratch scratch(kPanel * (pitch_ + 1) * kSize);
      if (!scratch.whole()) return failed.raise();
      T* prototypes = scratch.take<T>(kPanel * pitch_);
      pack_prototypes(panel, false, prototypes, scratch.take<T>(kPanel));
    });
    if (failed.raised()) return false;
    const std::int64_t tiles = (rows_ + kTileFeatures - 1) / kTileFeatures;
    parallel_for(tiles, args_.threads, [&](std::int64_t tile) {
      if (!forward_tile(tile * kTileFeatures, loss, log_sum)) failed.raise();
    });
    return !failed.raised();
  }

  bool backward(const PrototypeLossGradients& gradients) {
    const std::int64_t parts = parts_of(rows_, args_.classes);
    const std::int64_t part_rows = round_up((rows_ + parts - 1) / parts, kTileFeatures);
    const std::int64_t share = smaller(rows_ / kChunkShare, part_rows / kChunksOfPart);
    const std::int64_t longest = smaller(kLargestChunk, round_up(share + 1, kTileFeatures));
    const std::int64_t weight_pitch = pitch_for<T>(classes_);
    const std::int64_t padded = round_up(classes_, kPanel);
    const std::int64_t sums = args_.classes * columns_;
    Scratch scratch((padded * (pitch_ + 1) + parts * longest * (pitch_ + weight_pitch)) * kSize +
                    parts * sums * 8);
    if (!scratch.whole() || !panel_scratch_.whole()) return false;
    T* prototypes = scratch.take<T>(padded * pitch_);
    T* inverse = scratch.take<T>(padded);
    T* features = scratch.take<T>(parts * longest * pitch_);
    T* weights = scratch.take<T>(parts * longest * weight_pitch);
    double* prototype_gradients = scratch.take<double>(parts * sums);
    parallel_for(panels(), args_.threads, [&](std::int64_t panel) {
      pack_prototypes(panel, true, prototypes + panel * kPanel * pitch_, inverse + panel * kPanel);
    });

    Flag failed;
    // One after the other they leave the threads to their tiles and blocks.
    parallel_for(parts, parts < args_.threads ? 1 : args_.threads, [&](std::int64_t number) {
      Part part;
      part.first = number * part_rows;
      part.end = smaller(part.first + part_rows, rows_);
      part.longest = longest;
      part.features = features + number * longest * pitch_;
      part.weights = {weights + number * longest * weight_pitch, weight_pitch};
      part.prototype_gradient = prototype_gradients + number * sums;
      if (!backward_part(part, prototypes, gradients)) failed.raise();
    });
    if (failed.raised()) return false;
    parallel_for(panels(), args_.threads, [&](std::int64_t panel) {
      for (std::int64_t c = panel * kPanel; c < smaller((panel + 1) * kPanel, args_.classes); ++c) {
        double* gradient = prototype_gradients + c * columns_;
        for (std::int64_t part = 1; part < parts; ++part)
          for (std::int64_t d = 0; d < columns_; ++d) gradient[d] += gradient[part * sums + d];
        finish_prototype(gradient, prototypes + c * pitch_, inverse[c], gradients.prototype_gradient, c);
      }
    });
    return true;
  }

 private:
  using Vector = typename Simd<T>::Vector;
  static constexpr std::int64_t kLanes = Simd<T>::kLanes;
  static constexpr std::int64_t kSize = sizeof(T);
  // Classes side by side in a packed panel [columns, kPanel] of prototypes.
  static constexpr std::int64_t kPanel = kTileColumns<T>;

  // A run of the group's rows, and working memory.
  struct Part {
    std::int64_t first;
    std::int64_t end;
    std::int64_t longest;        // of its chunks
    T* features;                 // [longest, pitch]
    Product<T> weights;          // [longest, classes]
    double* prototype_gradient;  // [C, columns]
  };

  // Rows whose weights are held, and where their tiles' features lie.
  struct Chunk {
    std::int64_t count;
    Product<T> weights;  // [count, classes], for features before `inverse`
    const T* features[kLargestChunk / kTileFeatures];
    std::int64_t pitch[kLargestChunk / kTileFeatures];
  };

  std::int64_t panels() const { return round_up(classes_, kPanel) / kPanel; }

  // The prototypes of one panel: scaled, as rows [kPanel, pitch] with what they were scaled with, and packed.
  // Behind the last one are zeros. With `blank` non-finite ones are zero afterwards, but not in the panel:
  // rows that use one have a NaN weight, and the others have weight 0, which must stay 0.
  void pack_prototypes(std::int64_t panel, bool blank, T* rows, T* inverse) {
    const std::int64_t width = smaller(kPanel, classes_ - panel * kPanel);
    const std::int64_t given = smaller(width, args_.classes - panel * kPanel);
    bool finite[kPanel];
    for (std::int64_t i = 0; i < given; ++i) {
      T* row = rows + i * pitch_;
      fetch(span_of(args_.prototypes, number_, panel * kPanel + i), args_.dims, pitch_, row);
      const Unit<T> unit = make_unit(row, args_.dims, args_.normalise);
      inverse[i] = unit.inverse_length;
      finite[i] = unit.finite;
    }
    std::memset(rows + given * pitch_, 0, static_cast<std::size_t>((width - given) * pitch_ * kSize));
    transpose(width, columns_, rows, pitch_, panels_ + panel * kPanel * columns_, kPanel);
    for (std::int64_t i = 0; blank && i < given; ++i) {
      if (finite[i]) continue;
      inverse[i] = 0;
      std::memset(rows + i * pitch_, 0, static_cast<std::size_t>(pitch_ * kSize));
    }
  }

  std::int64_t mask_of(std::int64_t client) const {
    return args_.masks == 0 ? 0 : client / (args_.clients / args_.masks);
  }

  // Masks that the rows of a tile use.
  std::int64_t masks_of_tile(std::int64_t first, std::int64_t count) const {
    const std::int64_t start = number_ * clients_;
    return mask_of(start + (first + count - 1) / args_.rows) - mask_of(start + first / args_.rows) + 1;
  }

  // Fills in all but `factor`; `bars` [masks_of_tile, classes].
  void find_rows(std::int64_t first, std::int64_t count, T* bars, TileRows<T>& rows) const {
    std::int64_t client = number_ * clients_ + first / args_.rows;
    std::int64_t number = first % args_.rows;
    const std::int64_t first_mask = mask_of(client);
    for (std::int64_t m = 0; m < masks_of_tile(first, count); ++m)
      fill_bar(first_mask + m, bars + m * classes_);
    rows.count = count;
    for (std::int64_t i = 0; i < count; ++i) {
      const T* bar = bars + (mask_of(client) - first_mask) * classes_;
      const std::int64_t label =
          args_.labels[client * args_.label_strides[0] + number * args_.label_strides[1]];
      rows.client[i] = client;
      rows.number[i] = number;
      rows.label[i] = label != kIgnoredLabel && bar[label] == 0 ? label : -1;
      rows.bar[i] = bar;
      if (++number == args_.rows) {
        number = 0;
        ++client;
      }
    }
  }

  void fill_bar(std::int64_t mask, T* bar) const {
    for (std::int64_t c = 0; c < args_.classes; ++c) {
      const bool open = args_.masks == 0 || args_.class_mask[mask * args_.classes + c] != 0;
      bar[c] = open ? T{0} : kMinusInfinity<T>;
    }
    for (std::int64_t c = args_.classes; c < classes_; ++c) bar[c] = kMinusInfinity<T>;
  }

  // The features of a tile, and its rows' `factor`; `spare` [count, pitch].
  UnitRows<T> load_features(bool blank, T* spare, TileRows<T>& rows) const {
    const Strided& from = args_.features;
    const bool evenly_spaced =
        rows.client[0] == rows.client[rows.count - 1] || from.strides[0] == args_.rows * from.strides[1];
    const T* plain = as_plain<T>(span_of(from, rows.client[0], rows.number[0]));
    UnitRows<T> features;
    if (plain != nullptr && evenly_spaced) {
      features.data = plain;
      features.pitch = from.strides[1];
    } else {
      for (std::int64_t i = 0; i < rows.count; ++i)
        fetch(span_of(from, rows.client[i], rows.number[i]), args_.dims, pitch_, spare + i * pitch_);
      features.data = spare;
      features.pitch = pitch_;
    }
    measure(rows.count, args_.dims, args_.normalise, blank, spare, pitch_, features);
    for (std::int64_t i = 0; i < rows.count; ++i) rows.factor[i] = features.inverse[i] * scale_;
    return features;
  }

  // <f, p_c> of a tile with classes [first, first + width).
  void multiply_classes(std::int64_t count, const UnitRows<T>& features, std::int64_t first,
                        std::int64_t width, Product<T> products) const {
    if (args_.dims == 0)
      for (std::int64_t i = 0; i < count; ++i)
        std::memset(products.data + i * products.row, 0, static_cast<std::size_t>(width * kSize));
    multiply<T>(count, width, args_.dims, {features.data, features.pitch, 1},
                {panels_ + first * columns_, kPanel, kPanel * columns_}, products, false);
  }

  bool forward_tile(std::int64_t first, T* loss, T* log_sum) const {
    const std::int64_t count = smaller(kTileFeatures, rows_ - first);
    const std::int64_t block = smaller(kClassBlock, classes_);
    const std::int64_t logit_pitch = pitch_for<T>(block);
    const std::int64_t masks = masks_of_tile(first, count);
    Scratch scratch((count * (pitch_ + logit_pitch) + masks * classes_) * kSize);
    if (!scratch.whole()) return false;
    T* spare = scratch.take<T>(count * pitch_);
    T* logits = scratch.take<T>(count * logit_pitch);
    TileRows<T> rows;
    find_rows(first, count, scratch.take<T>(masks * classes_), rows);
    const UnitRows<T> features = load_features(false, spare, rows);
    TileLoss<T> tile(rows);
    for (std::int64_t c = 0; c < classes_; c += block) {
      const std::int64_t width = smaller(block, classes_ - c);
      multiply_classes(count, features, c, width, {logits, logit_pitch});
      tile.add(c, width, logits, logit_pitch);
    }
    const std::int64_t flat = number_ * rows_ + first;
    tile.finish(loss + flat, log_sum + flat);
    return true;
  }

  // The gradients of a part's features, and what its rows add to those of the prototypes.
  bool backward_part(const Part& part, const T* prototypes, const PrototypeLossGradients& gradients) const {
    std::memset(part.prototype_gradient, 0, static_cast<std::size_t>(args_.classes * columns_) * 8);
    const std::int64_t blocks = (args_.classes + kClassesOfTask - 1) / kClassesOfTask;
    const std::int64_t strips = (columns_ + kPanel - 1) / kPanel;
    Flag failed;
    for (std::int64_t first = part.first; first < part.end; first += part.longest) {
      Chunk chunk;
      chunk.count = smaller(part.longest, part.end - first);
      chunk.weights = part.weights;
      const std::int64_t tiles = (chunk.count + kTileFeatures - 1) / kTileFeatures;
      parallel_for(tiles, args_.threads, [&](std::int64_t tile) {
        T* spare = part.features + tile * kTileFeatures * pitch_;
        if (!backward_tile(first, tile, prototypes, gradients, spare, chunk)) failed.raise();
      });
      if (failed.raised()) return false;
      parallel_for(blocks * strips, args_.threads, [&](std::int64_t task) {
        add_chunk(chunk, task % blocks * kClassesOfTask, task / blocks * kPanel, part.prototype_gradient);
      });
    }
    return true;
  }

  // One tile of a chunk that starts at row `start`: leaves weights and features, writes the gradient of the
  // features.
  bool backward_tile(std::int64_t start, std::int64_t tile, const T* prototypes,
                     const PrototypeLossGradients& gradients, T* spare, Chunk& chunk) const {
    const std::int64_t first = start + tile * kTileFeatures;
    const std::int64_t count = smaller(kTileFeatures, chunk.count - tile * kTileFeatures);
    const std::int64_t masks = masks_of_tile(first, count);
    Scratch scratch((count * pitch_ + masks * classes_) * kSize);
    if (!scratch.whole()) return false;
    T* gradient = scratch.take<T>(count * pitch_);
    TileRows<T> rows;
    find_rows(first, count, scratch.take<T>(masks * classes_), rows);
    const UnitRows<T> features = load_features(true, spare, rows);
    chunk.features[tile] = features.data;
    chunk.pitch[tile] = features.pitch;

    const Product<T> weights{chunk.weights.data + tile * kTileFeatures * chunk.weights.row,
                             chunk.weights.row};
    multiply_classes(count, features, 0, classes_, weights);
    const std::int64_t flat = number_ * rows_ + first;
    const Strided& upstream = gradients.loss_gradient;
    T share[kTileFeatures];
    for (std::int64_t i = 0; i < count; ++i) {
      const T value = static_cast<const T*>(
          upstream.data)[rows.client[i] * upstream.strides[0] + rows.number[i] * upstream.strides[1]];
      share[i] = rows.label[i] < 0 || value == 0 ? T{0} : value * rows.factor[i];
    }
    make_weights(rows, share, static_cast<const T*>(gradients.log_sum) + flat, classes_, weights.data,
                 weights.row);
    multiply<T>(count, columns_, args_.classes, {weights.data, weights.row, 1}, {prototypes, pitch_},
                {gradient, pitch_}, false);
    for (std::int64_t i = 0; i < count; ++i)
      finish_feature(gradient + i * pitch_, features, i, gradients.feature_gradient, flat + i);
    return true;
  }

  // From the gradient of the unit row over its length to that of the row.
  void finish_feature(T* gradient, const UnitRows<T>& features, std::int64_t i, void* to,
                      std::int64_t flat) const {
    const bool plain = args_.features.dtype == kDTypeOf<T>;
    T* out = plain ? static_cast<T*>(to) + flat * args_.dims : gradient;
    const T* feature = features.data + i * features.pitch;
    const T applied = features.applied[i], inverse = features.inverse[i];
    T along = 0;
    if (args_.normalise) along = inverse * (inverse * dot(feature, gradient, args_.dims));
#pragma GCC ivdep
    for (std::int64_t d = 0; d < args_.dims; ++d) out[d] = (gradient[d] - feature[d] * along) * applied;
    if (!plain) unpack(out, args_.features.dtype, to, flat * args_.dims, args_.dims);
  }

  // Adds W^T F of one chunk for kClassesOfTask classes and kPanel columns of the prototype gradient.
  void add_chunk(const Chunk& chunk, std::int64_t first_class, std::int64_t first_column,
                 double* prototype_gradient) const {
    const std::int64_t classes = smaller(kClassesOfTask, args_.classes - first_class);
    const std::int64_t width = smaller(kPanel, columns_ - first_column);
    const std::int64_t given = smaller(kPanel, args_.dims - first_column);
    alignas(64) T strip[kLargestChunk * kPanel];
    alignas(64) T product[kClassesOfTask * kPanel];
    for (std::int64_t n = 0; n < chunk.count; ++n) {
      const std::int64_t tile = n / kTileFeatures;
      const T* from = chunk.features[tile] + n % kTileFeatures * chunk.pitch[tile] + first_column;
      T* to = strip + n * kPanel;
      if (given == kPanel) {
        std::memcpy(to, from, kPanel * kSize);
      } else {
        for (std::int64_t d = 0; d < kPanel; ++d) to[d] = d < given ? from[d] : T{0};
      }
    }
    multiply<T>(classes, width, chunk.count, {chunk.weights.data + first_class, 1, chunk.weights.row},
                {strip, kPanel}, {product, kPanel}, false);
    for (std::int64_t i = 0; i < classes; ++i) {
      double* total = prototype_gradient + (first_class + i) * columns_ + first_column;
      for (std::int64_t d = 0; d < width; ++d) total[d] += product[i * kPanel + d];
    }
  }

  // From the gradient of the unit prototype, in place, to that of the prototype.
  void finish_prototype(double* gradient, const T* prototype, T inverse, void* to, std::int64_t c) const {
    if (args_.normalise) {
      const double along = wide_dot(gradient, prototype, columns_);
      for (std::int64_t d = 0; d < args_.dims; ++d)
        gradient[d] = (gradient[d] - prototype[d] * along) * inverse;
    }
    unpack(gradient, args_.prototypes.dtype, to, (number_ * args_.classes + c) * args_.dims, args_.dims);
  }

  const PrototypeLossArgs& args_;
  const std::int64_t number_;
  const std::int64_t clients_;
  const std::int64_t rows_;
  const std::int64_t pitch_;    // of packed features and prototypes
  const std::int64_t columns_;  // D in whole vectors
  const std::int64_t classes_;  // C in whole vectors
  const T scale_;
  Scratch panel_scratch_;
  T* const panels_;  // [panels, columns, kPanel]
};

// Groups side by side; inside a single group the tiles are.
template <typename T, typename Body>
Status for_each_group(const PrototypeLossArgs& args, Body body) {
  Flag failed;
  parallel_for(args.groups, args.threads, [&](std::int64_t number) {
    Group<T> group(args, number);
    if (!body(group)) failed.raise();
  });
  return failed.raised() ? Status::kOutOfMemory : Status::kOk;
}

template <typename T>
Status forward(const PrototypeLossArgs& args, void* loss, void* log_sum) {
  return for_each_group<T>(
      args, [&](Group<T>& group) { return group.forward(static_cast<T*>(loss), static_cast<T*>(log_sum)); });
}

template <typename T>
Status backward(const PrototypeLossArgs& args, const PrototypeLossGradients& gradients) {
  return for_each_group<T>(args, [&](Group<T>& group) { return group.backward(gradients); });
}

}  // namespace

Status prototype_loss(const PrototypeLossArgs& args, void* loss, void* log_sum) {
  return args.in_double ? forward<double>(args, loss, log_sum) : forward<float>(args, loss, log_sum);
}

Status prototype_loss_backward(const PrototypeLossArgs& args, const PrototypeLossGradients& gradients) {
  return args.in_double ? backward<double>(args, gradients) : backward<float>(args, gradients);
}

}  // namespace MMFL_SIMD
}  // namespace mmfl
