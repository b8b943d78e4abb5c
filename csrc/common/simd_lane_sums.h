// Horizontal sums of many vectors at once. Included only by *_cpu_simd.cpp, see common/simd.h.
#pragma once

#include "common/simd.h"

namespace mmfl {
namespace MMFL_SIMD {

template <int... I>
struct Indices {};
template <int N, int... I>
struct IndicesUpTo : IndicesUpTo<N - 1, N - 1, I...> {};
template <int... I>
struct IndicesUpTo<0, I...> {
  using Type = Indices<I...>;
};

template <typename T, int... I>
static inline typename Simd<T>::Vector shuffle(typename Simd<T>::Vector a, typename Simd<T>::Vector b) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, I...);
#else
  typedef typename Simd<T>::Index Mask __attribute__((vector_size(MMFL_SIMD_BYTES)));
  return __builtin_shuffle(a, b, Mask{I...});
#endif
}

// a and b hold partial sums in groups of kGroup lanes; the result holds them in groups of half the size.
template <typename T, int kGroup, int... I>
static inline typename Simd<T>::Vector fold(typename Simd<T>::Vector a, typename Simd<T>::Vector b,
                                            Indices<I...>) {
  constexpr int kHalf = kGroup / 2;
  return shuffle<T, (I / kHalf * kGroup + I % kHalf)...>(a, b) +
         shuffle<T, (I / kHalf * kGroup + I % kHalf + kHalf)...>(a, b);
}

// Folds 2 * kLanes / kGroup vectors into one that holds groups of kGroup / 2 lanes.
template <typename T, int kGroup, bool kWhole = (kGroup > Simd<T>::kLanes)>
struct LaneSums {
  static inline typename Simd<T>::Vector of(const typename Simd<T>::Vector* vectors) {
    return fold<T, kGroup>(LaneSums<T, kGroup * 2>::of(vectors),
                           LaneSums<T, kGroup * 2>::of(vectors + Simd<T>::kLanes / kGroup),
                           typename IndicesUpTo<Simd<T>::kLanes>::Type{});
  }
};

template <typename T, int kGroup>
struct LaneSums<T, kGroup, true> {
  static inline typename Simd<T>::Vector of(const typename Simd<T>::Vector* vectors) { return *vectors; }
};

// Lane i of the result is the sum of the lanes of vectors[i], kLanes of them, added pairwise in a fixed
// order.
template <typename T>
static inline typename Simd<T>::Vector lane_sums(const typename Simd<T>::Vector* vectors) {
  return LaneSums<T, 2>::of(vectors);
}

}  // namespace MMFL_SIMD
}  // namespace mmfl
