// The d x d form: tiles of X_i^T X_j, squared and summed. Included only by cross_gram_sq_cpu_simd.cpp, see
// common/simd.h.
#pragma once

#include "cross_gram_sq/cross_gram_sq_simd_views.h"

namespace mmfl {
namespace MMFL_SIMD {
namespace {

template <typename T>
class ColumnForm {
 public:
  ColumnForm(const Views<T>& views, double* out) : views_(views), out_(out) {}

  // Adds to the upper triangle of `out`. False if there was no memory.
  bool run() const {
    Scratch scratch(views_.count() * static_cast<std::int64_t>(sizeof(Party)));
    if (!scratch.whole()) return false;
    Party* parties = scratch.take<Party>(views_.count());
    std::int64_t count = 0;
    for (std::int64_t v = 0; v < views_.count(); ++v) {
      if (count > 0 && views_.first_column(v + 1) - views_.first_column(parties[count - 1].first) <= kTile) {
        parties[count - 1].end = v + 1;
      } else {
        parties[count++] = {v, v + 1};
      }
    }
    Flag failed;
    parallel_for(count * (count + 1) / 2, views_.threads(), [&](std::int64_t task) {
      const TilePlace pair = place_of(task);
      if (!add_pair(parties[pair.row], parties[pair.column])) failed.raise();
    });
    return !failed.raised();
  }

 private:
  static constexpr std::int64_t kSize = sizeof(T);

  // Consecutive views whose columns share a tile; or one view, in as many tiles as it needs.
  struct Party {
    std::int64_t first;
    std::int64_t end;
  };

  bool add_pair(Party left, Party right) const {
    Scratch scratch((2 * kMultiplyDepth * kTile + kTileSize) * kSize + kTileSize * 8);
    if (!scratch.whole()) return false;
    T* left_pack = scratch.take<T>(kMultiplyDepth * kTile);
    T* right_pack = scratch.take<T>(kMultiplyDepth * kTile);
    T* product = scratch.take<T>(kTileSize);
    double* total = scratch.take<double>(kTileSize);
    for (std::int64_t j = first_column(right); j < end_column(right); j += kTile) {
      const std::int64_t width = smaller(kTile, end_column(right) - j);
      const std::int64_t padded = round_up(width, Simd<T>::kLanes);
      for (std::int64_t i = first_column(left); i < end_column(left); i += kTile) {
        const std::int64_t height = smaller(kTile, end_column(left) - i);
        clear(total, height * kTile);
        for (std::int64_t r = 0; r < views_.rows(); r += kMultiplyDepth) {
          const std::int64_t depth = smaller(kMultiplyDepth, views_.rows() - r);
          pack_columns(left, i, height, r, depth, left_pack);
          pack_columns(right, j, width, r, depth, right_pack);
          multiply<T>(height, padded, depth, {left_pack, 1, kTile}, {right_pack, kTile}, {product, kTile},
                      false);
          for (std::int64_t h = 0; h < height; ++h)
            for (std::int64_t w = 0; w < width; ++w) total[h * kTile + w] += product[h * kTile + w];
        }
        add_squares(left, i, height, right, j, width, total);
      }
    }
    return true;
  }

  std::int64_t first_column(Party party) const { return views_.first_column(party.first); }
  std::int64_t end_column(Party party) const { return views_.first_column(party.end); }

  // Columns [first, first + width) of all views' columns, which lie in `party`, as [depth, kTile].
  void pack_columns(Party party, std::int64_t first, std::int64_t width, std::int64_t row, std::int64_t depth,
                    T* to) const {
    for (std::int64_t r = 0; r < depth; ++r) {
      for (std::int64_t v = party.first; v < party.end; ++v) {
        const std::int64_t begin = larger(first, views_.first_column(v));
        const std::int64_t end = smaller(first + width, views_.first_column(v + 1));
        if (begin < end)
          views_.read(v, row + r, begin - views_.first_column(v), end - begin,
                      to + r * kTile + begin - first);
      }
      for (std::int64_t w = width; w < kTile; ++w) to[r * kTile + w] = 0;
    }
  }

  void add_squares(Party left, std::int64_t i, std::int64_t height, Party right, std::int64_t j,
                   std::int64_t width, const double* product) const {
    for (std::int64_t a = left.first; a < left.end; ++a) {
      for (std::int64_t b = larger(a, right.first); b < right.end; ++b) {
        const std::int64_t top = larger(i, views_.first_column(a));
        const std::int64_t bottom = smaller(i + height, views_.first_column(a + 1));
        const std::int64_t begin = larger(j, views_.first_column(b));
        const std::int64_t end = smaller(j + width, views_.first_column(b + 1));
        double sum = 0;
        for (std::int64_t h = top; h < bottom; ++h)
          for (std::int64_t w = begin; w < end; ++w) {
            const double value = product[(h - i) * kTile + w - j];
            sum += value * value;
          }
        out_[a * views_.count() + b] += sum;
      }
    }
  }

  const Views<T>& views_;
  double* const out_;  // [K, K]
};

}  // namespace
}  // namespace MMFL_SIMD
}  // namespace mmfl
