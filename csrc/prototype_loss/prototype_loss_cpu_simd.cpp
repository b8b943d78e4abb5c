// Logits exist for one tile of rows at a time: the forward keeps a running log-sum-exp, the backward makes
// them again. A group is the rows that share prototypes. Its backward goes over the rows in chunks: tiles of
// rows first, which leave their weights dloss/dlogit and finish their feature gradients; then blocks of
// classes, each adding the chunk to its own part of the prototype gradient. No two tasks write one place.
#include <math.h>

#include "common/simd.h"
#include "common/simd_exp.h"
#include "common/simd_flag.h"
#include "common/simd_multiply.h"
#include "common/simd_pack.h"
#include "common/simd_scratch.h"
#include "common/thread_pool.h"
#include "prototype_loss/prototype_loss.h"

namespace mmfl {
namespace MMFL_SIMD {
namespace {

constexpr std::int64_t kTileFeatures = 64;   // rows of a tile
constexpr std::int64_t kClassBlock = 256;    // classes whose logits the forward holds
constexpr std::int64_t kClassesOfTask = 16;  // of the prototype gradient
// Rows whose weights the backward holds: a sixteenth of them, so that memory stays far below N x C.
constexpr std::int64_t kChunkShare = 16;
constexpr std::int64_t kLargestChunk = 256;
constexpr double kShortest = 1e-12;
// Sums of squares of floats between these have lost nothing to overflow or underflow.
constexpr double kSafeLow = 1e-20;
constexpr double kSafeHigh = 1e30;

std::int64_t smaller(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

// Elements between packed rows: an odd number of cache lines, so that rows do not compete for a cache set.
template <typename T>
std::int64_t pitch_for(std::int64_t count) {
  constexpr std::int64_t kLine = 64 / static_cast<std::int64_t>(sizeof(T));
  return (round_up(count, kLine) / kLine | 1) * kLine;
}

float log_of(float x) { return logf(x); }
double log_of(double x) { return log(x); }
float log1p_of(float x) { return log1pf(x); }
double log1p_of(double x) { return log1p(x); }
float exp_of(float x) { return expf(x); }
double exp_of(double x) { return exp(x); }
float expm1_of(float x) { return expm1f(x); }
double expm1_of(double x) { return expm1(x); }

template <typename T>
constexpr T lowest();
template <>
constexpr float lowest<float>() {
  return -__FLT_MAX__;
}
template <>
constexpr double lowest<double>() {
  return -__DBL_MAX__;
}

template <typename T>
T largest_of(typename Simd<T>::Vector value) {
  T lane[Simd<T>::kLanes];
  std::memcpy(lane, &value, sizeof value);
  for (int width = Simd<T>::kLanes / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lane[i] = lane[i + width] > lane[i] ? lane[i + width] : lane[i];
  return lane[0];
}

static inline Doubles widen(const float* from) {
  typedef float Half __attribute__((vector_size(MMFL_SIMD_BYTES / 2)));
  Half value;
  std::memcpy(&value, from, sizeof value);
  return __builtin_convertvector(value, Doubles);
}
static inline Doubles widen(const double* from) { return load(from); }

// Product of two rows that are padded with zeros to whole vectors.
template <typename T>
T dot(const T* a, const T* b, std::int64_t count) {
  constexpr std::int64_t kLanes = Simd<T>::kLanes;
  typename Simd<T>::Vector even{}, odd{};
  std::int64_t i = 0;
  for (; i + 2 * kLanes <= count; i += 2 * kLanes) {
    even += load(a + i) * load(b + i);
    odd += load(a + i + kLanes) * load(b + i + kLanes);
  }
  for (; i < count; i += kLanes) even += load(a + i) * load(b + i);
  return sum(even + odd);
}

// The same, for values whose products may leave the range of T.
template <typename T>
double wide_dot(const T* a, const T* b, std::int64_t count) {
  Doubles sums{};
  for (std::int64_t i = 0; i < count; i += kDoubleLanes) sums += widen(a + i) * widen(b + i);
  return sum(sums);
}

template <typename T>
struct Unit {
  T inverse_length;  // what the vector was multiplied with, 0 if it counts as 0
  bool finite;
};

// Scales a padded row to unit length, or leaves it alone without `normalise`.
template <typename T>
Unit<T> make_unit(T* row, std::int64_t count, bool normalise) {
  double squares = static_cast<double>(dot(row, row, count));
  if (!(squares > kSafeLow && squares < kSafeHigh)) squares = wide_dot(row, row, count);
  bool finite = squares - squares == 0;
  if (!finite) {
    // A finite row of doubles can have an infinite square.
    T zero = 0;
    for (std::int64_t i = 0; i < count; ++i) zero += row[i] * 0;
    finite = zero == 0;
  }
  if (!normalise) return {1, finite};
  const double length = sqrt(squares);
  const T inverse = length <= kShortest ? T{0} : static_cast<T>(1 / length);
  for (std::int64_t i = 0; i < count; ++i) row[i] *= inverse;
  return {inverse, finite};
}

template <typename T>
void unpack(const T* from, DType dtype, void* data, std::int64_t first, std::int64_t count) {
  switch (dtype) {
    case DType::kFloat64: {
      double* to = static_cast<double*>(data) + first;
      for (std::int64_t i = 0; i < count; ++i) to[i] = from[i];
      return;
    }
    case DType::kFloat32: {
      float* to = static_cast<float*>(data) + first;
      for (std::int64_t i = 0; i < count; ++i) to[i] = static_cast<float>(from[i]);
      return;
    }
    case DType::kBFloat16: {
      std::uint16_t* to = static_cast<std::uint16_t*>(data) + first;
      for (std::int64_t i = 0; i < count; ++i) to[i] = bfloat16_from_float(static_cast<float>(from[i]));
      return;
    }
    case DType::kFloat16: {
      std::uint16_t* to = static_cast<std::uint16_t*>(data) + first;
      for (std::int64_t i = 0; i < count; ++i) to[i] = float16_from_float(static_cast<float>(from[i]));
      return;
    }
  }
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
        panel_scratch_(round_up(classes_, kPanel) * args.dims * kSize),
        panels_(panel_scratch_.template take<T>(round_up(classes_, kPanel) * args.dims)) {}

  bool forward(T* loss, T* log_sum) {
    if (!panel_scratch_.whole() || !pack_prototypes(nullptr, nullptr)) return false;
    const std::int64_t tiles = (rows_ + kTileFeatures - 1) / kTileFeatures;
    Flag failed;
    parallel_for(tiles, args_.threads, [&](std::int64_t tile) {
      if (!forward_tile(tile * kTileFeatures, loss, log_sum)) failed.raise();
    });
    return !failed.raised();
  }

  bool backward(const PrototypeLossGradients& gradients) {
    const std::int64_t chunk = smaller(kLargestChunk, round_up(rows_ / kChunkShare + 1, kTileFeatures));
    const std::int64_t weight_pitch = pitch_for<T>(classes_);
    const std::int64_t classes = args_.classes;
    Scratch scratch((classes * (pitch_ + 1) + chunk * (pitch_ + weight_pitch)) * kSize +
                    classes * columns_ * 8);
    if (!scratch.whole() || !panel_scratch_.whole()) return false;
    T* prototypes = scratch.take<T>(classes * pitch_);
    T* inverse = scratch.take<T>(classes);
    T* features = scratch.take<T>(chunk * pitch_);
    T* weights = scratch.take<T>(chunk * weight_pitch);
    double* prototype_gradient = scratch.take<double>(classes * columns_);
    if (!pack_prototypes(prototypes, inverse)) return false;
    std::memset(prototype_gradient, 0, static_cast<std::size_t>(classes * columns_) * 8);

    const std::int64_t blocks = (classes + kClassesOfTask - 1) / kClassesOfTask;
    Flag failed;
    for (std::int64_t first = 0; first < rows_ && !failed.raised(); first += chunk) {
      const std::int64_t count = smaller(chunk, rows_ - first);
      const std::int64_t tiles = (count + kTileFeatures - 1) / kTileFeatures;
      parallel_for(tiles, args_.threads, [&](std::int64_t tile) {
        const std::int64_t skipped = tile * kTileFeatures;
        const Product<T> weight_tile{weights + skipped * weight_pitch, weight_pitch};
        if (!backward_tile(first + skipped, smaller(kTileFeatures, count - skipped), prototypes, gradients,
                           features + skipped * pitch_, weight_tile))
          failed.raise();
      });
      parallel_for(blocks, args_.threads, [&](std::int64_t block) {
        const std::int64_t c = block * kClassesOfTask;
        const std::int64_t width = smaller(kClassesOfTask, classes - c);
        if (!add_chunk(width, count, {weights + c, 1, weight_pitch}, features,
                       prototype_gradient + c * columns_))
          failed.raise();
      });
    }
    if (failed.raised()) return false;
    parallel_for(blocks, args_.threads, [&](std::int64_t block) {
      const std::int64_t end = smaller((block + 1) * kClassesOfTask, classes);
      for (std::int64_t c = block * kClassesOfTask; c < end; ++c)
        finish_prototype(prototype_gradient + c * columns_, prototypes + c * pitch_, inverse[c],
                         gradients.prototype_gradient, c);
    });
    return true;
  }

 private:
  using Vector = typename Simd<T>::Vector;
  static constexpr std::int64_t kLanes = Simd<T>::kLanes;
  static constexpr std::int64_t kSize = sizeof(T);
  // Classes side by side in a packed panel [D, kPanel] of prototypes.
  static constexpr std::int64_t kPanel = 2 * kLanes;

  struct Row {
    std::int64_t client;
    std::int64_t number;  // in [0, N)
    std::int64_t flat;    // in [B, N]
    std::int64_t label;
    bool counts;
  };

  void find_rows(std::int64_t first, std::int64_t count, Row* rows) const {
    std::int64_t client = number_ * clients_ + first / args_.rows;
    std::int64_t number = first % args_.rows;
    const unsigned char* mask = class_mask(client);
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int64_t label =
          args_.labels[client * args_.label_strides[0] + number * args_.label_strides[1]];
      const bool counts = label != kIgnoredLabel && (mask == nullptr || mask[label] != 0);
      rows[i] = {client, number, client * args_.rows + number, label, counts};
      if (++number == args_.rows && i + 1 < count) {
        number = 0;
        mask = class_mask(++client);
      }
    }
  }

  const unsigned char* class_mask(std::int64_t client) const {
    if (args_.masks == 0) return nullptr;
    return args_.class_mask + client / (args_.clients / args_.masks) * args_.classes;
  }

  // A row of a strided tensor, converted, with zeros up to the pitch.
  void fetch(const Strided& from, std::int64_t i, std::int64_t j, T* to) const {
    const std::int64_t offset = (i * from.strides[0] + j * from.strides[1]) * size_of(from.dtype);
    pack<T>({static_cast<const char*>(from.data) + offset, from.strides[2], from.dtype}, 0, args_.dims, to);
    for (std::int64_t d = args_.dims; d < pitch_; ++d) to[d] = 0;
  }

  // Panels for the logits; and, when `rows` is given, [C, pitch] and what every prototype was scaled with.
  bool pack_prototypes(T* rows, T* inverse) {
    const std::int64_t panels = round_up(classes_, kPanel) / kPanel;
    Flag failed;
    parallel_for(panels, args_.threads, [&](std::int64_t number) {
      Scratch scratch(pitch_ * kSize);
      if (!scratch.whole()) return failed.raise();
      T* spare = scratch.take<T>(pitch_);
      T* panel = panels_ + number * kPanel * args_.dims;
      const std::int64_t width = smaller(kPanel, classes_ - number * kPanel);
      for (std::int64_t i = 0; i < width; ++i) {
        const std::int64_t c = number * kPanel + i;
        if (c >= args_.classes) {
          for (std::int64_t d = 0; d < args_.dims; ++d) panel[d * kPanel + i] = 0;
          continue;
        }
        T* row = rows == nullptr ? spare : rows + c * pitch_;
        fetch(args_.prototypes, number_, c, row);
        const Unit<T> unit = make_unit(row, args_.dims, args_.normalise);
        for (std::int64_t d = 0; d < args_.dims; ++d) panel[d * kPanel + i] = row[d];
        if (rows == nullptr) continue;
        inverse[c] = unit.finite ? unit.inverse_length : T{0};
        // Rows that use this prototype have a NaN weight; the others have weight 0, which must stay 0.
        if (!unit.finite) std::memset(row, 0, static_cast<std::size_t>(pitch_) * sizeof(T));
      }
    });
    return !failed.raised();
  }

  // <f, p_c> of `count` packed features with classes [first, first + width).
  void multiply_classes(std::int64_t count, const T* features, std::int64_t first, std::int64_t width,
                        Product<T> products) const {
    for (std::int64_t c = 0; c < width; c += kPanel)
      multiply<T>(count, smaller(kPanel, width - c), args_.dims, {features, pitch_, 1},
                  {panels_ + (first + c) * args_.dims, kPanel}, {products.data + c, products.row}, false);
  }

  // 0 for the classes that take part, -infinity for the others and for the padding.
  void fill_bar(std::int64_t client, T* bar) const {
    const unsigned char* mask = class_mask(client);
    for (std::int64_t c = 0; c < classes_; ++c) {
      const bool open = c < args_.classes && (mask == nullptr || mask[c] != 0);
      bar[c] = open ? T{0} : -static_cast<T>(INFINITY);
    }
  }

  struct Running {
    T peak = lowest<T>();
    T target = 0;
    double others = 0;  // sum of exp(z - peak) without the target
  };

  // Divides inner products by the temperature, bars classes, and returns the largest logit, at least `floor`.
  T finish_logits(T* logits, const T* bar, std::int64_t width, T floor) const {
    Vector largest = Vector{} + floor;
    for (std::int64_t c = 0; c < width; c += kLanes) {
      const Vector shut = load(bar + c);
      const Vector z = shut == 0 ? load(logits + c) * scale_ : shut;
      largest = z > largest ? z : largest;
      store(logits + c, z);
    }
    return largest_of<T>(largest);
  }

  // Takes in logits [first, first + width) of one row; they are overwritten.
  void add_logits(T* logits, const T* bar, std::int64_t width, std::int64_t target, Running& running) const {
    const T peak = finish_logits(logits, bar, width, running.peak);
    if (target >= 0 && target < width) {
      running.target = logits[target];
      logits[target] = -static_cast<T>(INFINITY);
    }
    Vector sums{};
    for (std::int64_t c = 0; c < width; c += kLanes) sums += exponential(load(logits + c) - peak);
    if (running.others > 0 && peak > running.peak) running.others *= exp_of(running.peak - peak);
    running.others += sum(sums);
    running.peak = peak;
  }

  bool forward_tile(std::int64_t first, T* loss, T* log_sum) const {
    const std::int64_t count = smaller(kTileFeatures, rows_ - first);
    const std::int64_t block = smaller(kClassBlock, classes_);
    const std::int64_t logit_pitch = pitch_for<T>(block);
    Scratch scratch((count * (pitch_ + logit_pitch) + classes_) * kSize);
    if (!scratch.whole()) return false;
    T* features = scratch.take<T>(count * pitch_);
    T* logits = scratch.take<T>(count * logit_pitch);
    T* bar = scratch.take<T>(classes_);

    Running running[kTileFeatures];
    Row rows[kTileFeatures];
    find_rows(first, count, rows);
    for (std::int64_t i = 0; i < count; ++i) {
      const Row& row = rows[i];
      fetch(args_.features, row.client, row.number, features + i * pitch_);
      make_unit(features + i * pitch_, args_.dims, args_.normalise);
    }
    std::int64_t barred = -1;
    for (std::int64_t c = 0; c < classes_; c += block) {
      const std::int64_t width = smaller(block, classes_ - c);
      multiply_classes(count, features, c, width, {logits, logit_pitch});
      for (std::int64_t i = 0; i < count; ++i) {
        const Row& row = rows[i];
        if (!row.counts) continue;
        if (row.client != barred) fill_bar(barred = row.client, bar);
        add_logits(logits + i * logit_pitch, bar + c, width, row.label - c, running[i]);
      }
    }
    for (std::int64_t i = 0; i < count; ++i) {
      const Row& row = rows[i];
      const Running& at = running[i];
      const T others = static_cast<T>(at.others);
      if (!row.counts) {
        loss[row.flat] = log_sum[row.flat] = 0;
      } else if (at.target == at.peak) {
        // The loss of a row that is nearly certain keeps its leading digits.
        loss[row.flat] = log_sum[row.flat] = log1p_of(others);
      } else {
        log_sum[row.flat] = log_of(others + exp_of(at.target - at.peak));
        loss[row.flat] = (at.peak - at.target) + log_sum[row.flat];
      }
    }
    return true;
  }

  // One tile of the backward: fills the packed features and the weights dloss/dlogit / temperature of
  // `count` rows, and writes the gradient of their features.
  bool backward_tile(std::int64_t first, std::int64_t count, const T* prototypes,
                     const PrototypeLossGradients& gradients, T* features, Product<T> weights) const {
    Scratch scratch((count * (pitch_ + 1) + classes_) * kSize);
    if (!scratch.whole()) return false;
    T* gradient = scratch.take<T>(count * pitch_);
    T* inverse = scratch.take<T>(count);
    T* bar = scratch.take<T>(classes_);
    Row rows[kTileFeatures];
    find_rows(first, count, rows);
    for (std::int64_t i = 0; i < count; ++i) {
      const Row& row = rows[i];
      T* feature = features + i * pitch_;
      fetch(args_.features, row.client, row.number, feature);
      const Unit<T> unit = make_unit(feature, args_.dims, args_.normalise);
      inverse[i] = unit.finite ? unit.inverse_length : T{0};
      // Its weights are NaN for the classes it uses and must stay 0 for the others.
      if (!unit.finite) std::memset(feature, 0, static_cast<std::size_t>(pitch_) * sizeof(T));
    }
    multiply_classes(count, features, 0, classes_, weights);

    const Strided& upstream = gradients.loss_gradient;
    std::int64_t barred = -1;
    for (std::int64_t i = 0; i < count; ++i) {
      const Row& row = rows[i];
      T* weight = weights.data + i * weights.row;
      const T share = static_cast<const T*>(
          upstream.data)[row.client * upstream.strides[0] + row.number * upstream.strides[1]];
      if (!row.counts || share == 0) {
        std::memset(weight, 0, static_cast<std::size_t>(classes_) * sizeof(T));
        continue;
      }
      if (row.client != barred) fill_bar(barred = row.client, bar);
      const T peak = finish_logits(weight, bar, classes_, lowest<T>());
      const T log_sum = static_cast<const T*>(gradients.log_sum)[row.flat];
      const T factor = share * scale_;
      for (std::int64_t c = 0; c < classes_; c += kLanes) {
        // Two steps, so that large logits cancel before anything is rounded.
        const Vector p = exponential((load(weight + c) - peak) - log_sum) * factor;
        store(weight + c, load(bar + c) == 0 ? p : Vector{});
      }
      // p - 1 without cancellation: p = exp(-loss).
      weight[row.label] = expm1_of(-static_cast<const T*>(gradients.loss)[row.flat]) * factor;
    }
    multiply<T>(count, columns_, args_.classes, {weights.data, weights.row, 1}, {prototypes, pitch_},
                {gradient, pitch_}, false);
    for (std::int64_t i = 0; i < count; ++i) {
      T* to = gradient + i * pitch_;
      if (args_.normalise) {
        const T* feature = features + i * pitch_;
        const T along = dot(feature, to, columns_);
        for (std::int64_t d = 0; d < args_.dims; ++d) to[d] = (to[d] - feature[d] * along) * inverse[i];
      }
      unpack(to, args_.features.dtype, gradients.feature_gradient, rows[i].flat * args_.dims, args_.dims);
    }
    return true;
  }

  // Adds W^T F of one chunk of `count` rows to `width` classes of the prototype gradient.
  bool add_chunk(std::int64_t width, std::int64_t count, Left<T> weights, const T* features,
                 double* prototype_gradient) const {
    Scratch scratch(width * pitch_ * kSize);
    if (!scratch.whole()) return false;
    T* product = scratch.take<T>(width * pitch_);
    multiply<T>(width, columns_, count, weights, {features, pitch_}, {product, pitch_}, false);
    for (std::int64_t i = 0; i < width; ++i) {
      double* total = prototype_gradient + i * columns_;
      for (std::int64_t d = 0; d < columns_; ++d) total[d] += product[i * pitch_ + d];
    }
    return true;
  }

  // From the gradient of the unit prototype, in place, to that of the prototype.
  void finish_prototype(double* gradient, const T* prototype, T inverse, void* to, std::int64_t c) const {
    if (args_.normalise) {
      double along = 0;
      for (std::int64_t d = 0; d < args_.dims; ++d) along += gradient[d] * prototype[d];
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
  T* const panels_;  // [panels, D, kPanel]
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
