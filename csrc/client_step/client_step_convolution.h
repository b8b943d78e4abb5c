// Convolutions and pooling of pictures whose channels lie side by side; a series is a picture of one line.
// Included only by client_step_cpu_simd.cpp, see common/simd.h.
//
// No window is copied: the pixels of a line of a window, all channels of each, are one run in memory, and the
// window of the next pixel begins one pixel later. So windows are the rows of a matrix, which overlap.
#pragma once

#include <cstdint>

#include "client_step/client_step_lines.h"
#include "client_step/client_step_products.h"

namespace mmfl {
namespace MMFL_SIMD {

// Axes of pictures [B, H, W, C], and of kernels [O, C, h, w].
enum { kPicture, kPictureLine, kPixel, kChannel };
enum { kKernelOutput, kKernelInput, kKernelLine, kKernelPixel };

// Kernels as the right operand of a product: rows in the order of a window's numbers.
static void pack_kernels(View kernels, float* to) {
  const std::int64_t outputs = kernels.size[kKernelOutput];
  const std::int64_t* stride = kernels.stride;
  for (std::int64_t first = 0; first < outputs; first += kAcrossColumns) {
    const std::int64_t count = least(kAcrossColumns, outputs - first);
    for (std::int64_t y = 0; y < kernels.size[kKernelLine]; ++y)
      for (std::int64_t x = 0; x < kernels.size[kKernelPixel]; ++x)
        for (std::int64_t c = 0; c < kernels.size[kKernelInput]; ++c, to += kAcrossColumns) {
          const float* from = kernels.data + first * stride[kKernelOutput] + c * stride[kKernelInput] +
                              y * stride[kKernelLine] + x * stride[kKernelPixel];
          for (std::int64_t o = 0; o < kAcrossColumns; ++o)
            to[o] = o < count ? from[o * stride[kKernelOutput]] : 0.0f;
        }
  }
}

// Where the rows of a product begin, in what is read and in what is written. Tiles take them from here, so
// that they are full whatever the width of a picture is.
struct Rows {
  static constexpr std::int64_t kMost = 8 * kAcrossRows;
  std::int64_t count = 0;
  std::int64_t from[kMost];
  std::int64_t to[kMost];
};

// What a row has: `outer` times `inner` runs of `length` numbers that lie `step` apart. Each of the outer
// ones is summed for itself, which loses less.
struct Depth {
  std::int64_t outer;
  std::int64_t outer_stride;
  std::int64_t inner;
  std::int64_t inner_stride;
  std::int64_t length;
  std::int64_t step;
};

// `finish(to, j, sums, count)` takes `count` elements from column j on of the row that is written to `to`.
template <int kRows, typename Finish>
static inline void run_tile(const float* data, const Rows& rows, std::int64_t first, Depth depth,
                            const float* b, std::int64_t j, int columns, Finish finish) {
  const float* left[kRows];
  for (int i = 0; i < kRows; ++i) left[i] = data + rows.from[first + i];
  Floats totals[kRows][2] = {};
  for (std::int64_t outer = 0; outer < depth.outer; ++outer) {
    Floats sums[kRows][2] = {};
    for (std::int64_t inner = 0; inner < depth.inner; ++inner) {
      std::int64_t at = outer * depth.outer_stride + inner * depth.inner_stride;
      for (std::int64_t k = 0; k < depth.length; ++k, at += depth.step, b += kAcrossColumns) {
        const Floats right0 = load(b);
        const Floats right1 = load(b + kFloatLanes);
#pragma GCC unroll 8
        for (int i = 0; i < kRows; ++i) {
          const float scalar = left[i][at];
          sums[i][0] += scalar * right0;
          sums[i][1] += scalar * right1;
        }
      }
    }
    for (int i = 0; i < kRows; ++i)
      for (int v = 0; v < 2; ++v) totals[i][v] += sums[i][v];
  }
  const int whole = columns < kFloatLanes ? columns : kFloatLanes;
  for (int i = 0; i < kRows; ++i) {
    finish(rows.to[first + i], j, totals[i][0], whole);
    if (columns > kFloatLanes)
      finish(rows.to[first + i], j + kFloatLanes, totals[i][1], columns - kFloatLanes);
  }
}

template <int kRows, typename Finish>
static inline void run_tiles(const float* data, const Rows& rows, std::int64_t first, Depth depth,
                             const float* b, std::int64_t j, int columns, Finish finish) {
  for (; first + kRows <= rows.count; first += kRows)
    run_tile<kRows>(data, rows, first, depth, b, j, columns, finish);
  if constexpr (kRows > 1) run_tiles<kRows / 2>(data, rows, first, depth, b, j, columns, finish);
}

// The product of rows at `data` with `columns` packed columns; empties `rows`.
template <typename Finish>
static void multiply_runs(const float* data, Rows& rows, Depth depth, const float* packed,
                          std::int64_t columns, Finish finish) {
  const std::int64_t panel = depth.outer * depth.inner * depth.length;
  for (std::int64_t j = 0; j < columns; j += kAcrossColumns)
    run_tiles<kAcrossRows>(data, rows, 0, depth, packed + j * panel, j,
                           static_cast<int>(least(kAcrossColumns, columns - j)), finish);
  rows.count = 0;
}

// What is not worth a sum of its own.
constexpr std::int64_t kShortRun = 64;

// `padded` lies pixel behind pixel; `bias` runs along the channels, or is null.
static void convolve(View out, View padded, View kernels, const View* bias, float* packed) {
  const std::int64_t channels = padded.size[kChannel], outputs = out.size[kChannel];
  const std::int64_t stride = out.stride[kChannel];
  const std::int64_t lines = kernels.size[kKernelLine], line = padded.stride[kPictureLine];
  const std::int64_t run = kernels.size[kKernelPixel] * channels;
  const Depth window = run < kShortRun ? Depth{1, 0, lines, line, run, 1} : Depth{lines, line, 1, 0, run, 1};
  pack_kernels(kernels, packed);
  Rows rows;
  const auto finish = [&](std::int64_t to, std::int64_t o, Floats sums, int n) {
    if (bias != nullptr)
      sums += Line{bias->data + o * bias->stride[kChannel], bias->stride[kChannel]}.at(0, n);
    Line{out.data + to + o * stride, stride}.put(0, sums, n);
  };
  for (std::int64_t b = 0; b < out.size[kPicture]; ++b)
    for (std::int64_t y = 0; y < out.size[kPictureLine]; ++y)
      for (std::int64_t x = 0; x < out.size[kPixel]; ++x) {
        rows.from[rows.count] = b * padded.stride[kPicture] + y * padded.stride[kPictureLine] + x * channels;
        rows.to[rows.count++] =
            b * out.stride[kPicture] + y * out.stride[kPictureLine] + x * out.stride[kPixel];
        if (rows.count == Rows::kMost) multiply_runs(padded.data, rows, window, packed, outputs, finish);
      }
  multiply_runs(padded.data, rows, window, packed, outputs, finish);
}

// out [O, C, h, w]; `padded` and `gradient` [B, .., .., O] lie pixel behind pixel.
static void convolve_weights(View out, View padded, View gradient, float* packed) {
  const std::int64_t channels = padded.size[kChannel], line = padded.stride[kPictureLine];
  const std::int64_t lines = gradient.size[kPictureLine], width = gradient.size[kPixel];
  const std::int64_t pictures = gradient.size[kPicture], outputs = gradient.size[kChannel];
  const std::int64_t block = summed_pictures(pictures, lines * width), stride = out.stride[kKernelOutput];
  Rows rows;
  for (std::int64_t first = 0; first < pictures; first += block) {
    const std::int64_t count = least(block, pictures - first);
    const float* data = padded.data + first * padded.stride[kPicture];
    pack_columns(count * lines * width, outputs, gradient.data + first * lines * width * outputs, outputs,
                 packed);
    const Depth pixels{count, padded.stride[kPicture], lines, line, width, channels};
    const auto finish = [&](std::int64_t to, std::int64_t o, Floats sums, int n) {
      const Line place{out.data + to + o * stride, stride};
      place.put(0, first > 0 ? place.at(0, n) + sums : sums, n);
    };
    for (std::int64_t y = 0; y < out.size[kKernelLine]; ++y)
      for (std::int64_t x = 0; x < out.size[kKernelPixel]; ++x)
        for (std::int64_t c = 0; c < channels; ++c) {
          rows.from[rows.count] = y * line + x * channels + c;
          rows.to[rows.count++] =
              c * out.stride[kKernelInput] + y * out.stride[kKernelLine] + x * out.stride[kKernelPixel];
          if (rows.count == Rows::kMost) multiply_runs(data, rows, pixels, packed, outputs, finish);
        }
    multiply_runs(data, rows, pixels, packed, outputs, finish);
  }
}

// The pixels of a window of pooling; at the far edges it may have less than elsewhere.
struct Window {
  int count;
  std::int64_t offset[4];  // in memory
  float place[4];          // in the picture, line * W + pixel
};

// Calls body(pooled, window) with the offset of the pooled pixel for every window.
template <typename Body>
static void for_pooled(View pooled, View pictures, Body body) {
  const std::int64_t height = pictures.size[kPictureLine], width = pictures.size[kPixel];
  const std::int64_t lines = pooled.size[kPictureLine] == height ? 1 : 2;
  const std::int64_t pixels = pooled.size[kPixel] == width ? 1 : 2;
  for (std::int64_t b = 0; b < pooled.size[kPicture]; ++b)
    for (std::int64_t y = 0; y < pooled.size[kPictureLine]; ++y)
      for (std::int64_t x = 0; x < pooled.size[kPixel]; ++x) {
        Window window{};
        window.count = 0;
        for (std::int64_t i = y * lines; i < least((y + 1) * lines, height); ++i)
          for (std::int64_t j = x * pixels; j < least((x + 1) * pixels, width); ++j) {
            window.offset[window.count] = b * pictures.stride[kPicture] + i * pictures.stride[kPictureLine] +
                                          j * pictures.stride[kPixel];
            window.place[window.count++] = static_cast<float>(i * width + j);
          }
        body(b * pooled.stride[kPicture] + y * pooled.stride[kPictureLine] + x * pooled.stride[kPixel],
             window);
      }
}

// The largest of a window, and its name. Of equals the first stays, a NaN wins.
struct Winner {
  Floats largest;
  Floats name;
};

static inline Winner winner(View pictures, const Window& window, const float* names, std::int64_t c, int n) {
  const std::int64_t stride = pictures.stride[kChannel];
  Winner found{Line{pictures.data + window.offset[0], stride}.at(c, n), Floats{} + names[0]};
  for (int p = 1; p < window.count; ++p) {
    const Floats other = Line{pictures.data + window.offset[p], stride}.at(c, n);
    const auto wins = (other > found.largest) | (other != other);
    found.largest = wins ? other : found.largest;
    found.name = wins ? Floats{} + names[p] : found.name;
  }
  return found;
}

static void max_pool(View out, View pictures) {
  for_pooled(out, pictures, [&](std::int64_t pooled, const Window& window) {
    const Line to{out.data + pooled, out.stride[kChannel]};
    for_vectors(out.size[kChannel], [&](std::int64_t c, int n) {
      to.put(c, winner(pictures, window, window.place, c, n).largest, n);
    });
  });
}

static void max_pool_places(View out, View pictures) {
  for_pooled(out, pictures, [&](std::int64_t pooled, const Window& window) {
    const Line to{out.data + pooled, out.stride[kChannel]};
    for_vectors(out.size[kChannel], [&](std::int64_t c, int n) {
      to.put(c, winner(pictures, window, window.place, c, n).name, n);
    });
  });
}

// `out` has the strides of `pictures`.
static void max_pool_backward(View out, View gradient, View pictures) {
  for_pooled(gradient, pictures, [&](std::int64_t pooled, const Window& window) {
    const Line from{gradient.data + pooled, gradient.stride[kChannel]};
    for_vectors(gradient.size[kChannel], [&](std::int64_t c, int n) {
      const Floats place = winner(pictures, window, window.place, c, n).name, g = from.at(c, n);
      for (int p = 0; p < window.count; ++p)
        Line{out.data + window.offset[p], out.stride[kChannel]}.put(
            c, place == window.place[p] ? g : Floats{}, n);
    });
  });
}

}  // namespace MMFL_SIMD
}  // namespace mmfl
