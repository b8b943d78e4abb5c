// Runs the kernel of algebra.cuh on the CPU as algebra_launch.cu would on a GPU: a case from stdin, the
// result [K, K] to stdout.
#include "algebra/algebra.cuh"
#include "emulated_case.h"

namespace {

struct Nothing {};

template <mmfl::algebra::Step kStep>
void run(const mmfl::AlgebraDevice& args, mmfl::emulation::Order order) {
  const std::int64_t blocks = (args.count * args.count + mmfl::kAlgebraThreads - 1) / mmfl::kAlgebraThreads;
  mmfl::emulation::run_grid<Nothing>(blocks, 1, mmfl::kAlgebraThreads, order,
                                     [&](Nothing&) { mmfl::device::algebra_element<kStep>(args); });
}

}  // namespace

int main() {
  using mmfl::algebra::Step;
  using mmfl::emulation::Order;
  Case input;
  const auto step = static_cast<Step>(input.number());
  const Order order = input.number() != 0 ? Order::kBackward : Order::kForward;
  mmfl::AlgebraDevice args;
  args.count = input.number();
  const std::vector<double> threshold = input.numbers(1), row_mean = input.numbers(args.count);
  const std::vector<double> products = input.numbers(args.count * args.count);
  std::vector<double> out(products.size(), std::nan(""));
  args.products = products.data();
  args.row_mean = row_mean.data();
  args.threshold = threshold[0];
  args.out = out.data();
  if (step == Step::kCosine) run<Step::kCosine>(args, order);
  if (step == Step::kAngular) run<Step::kAngular>(args, order);
  if (step == Step::kSqDistance) run<Step::kSqDistance>(args, order);
  if (step == Step::kAlignment) run<Step::kAlignment>(args, order);
  write_out(out);
  return 0;
}
