// Every thread makes one element from what it needs of the products, which nobody writes to meanwhile.
#pragma once

#include "algebra/algebra_cuda.h"
#include "algebra/algebra_entry.h"
#include "common/device.cuh"

namespace mmfl {
namespace device {

template <algebra::Step kStep>
MMFL_DEVICE void algebra_element(const AlgebraDevice& args) {
  const std::int64_t at = block_x() * kAlgebraThreads + thread();
  if (at >= args.count * args.count) return;
  const std::int64_t i = at / args.count, j = at % args.count;
  const double product = args.products[at];
  const double a = args.products[i * (args.count + 1)], b = args.products[j * (args.count + 1)];
  double element = product;
  if (kStep == algebra::Step::kSqDistance && i != j) {
    element = algebra::sq_distance_entry(a, b, product, args.products[j * args.count + i]);
  } else if (product == product) {
    if (i == j) {
      element = kStep == algebra::Step::kSqDistance ? 0.0 : 1.0;
    } else if (kStep == algebra::Step::kAlignment) {
      element = algebra::alignment_entry(product, algebra::alignment_scale(a, args.threshold),
                                         algebra::alignment_scale(b, args.threshold));
    } else {
      element = algebra::cosine_entry(product, algebra::direction(a, args.row_mean[i], args.threshold),
                                      algebra::direction(b, args.row_mean[j], args.threshold));
      if (kStep == algebra::Step::kAngular) element = algebra::angular_entry(element);
    }
  }
  args.out[at] = element;
}

}  // namespace device
}  // namespace mmfl
