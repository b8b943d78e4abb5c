// Runs the kernels of prototype_loss on the CPU as prototype_loss_launch.cu would on a GPU: a case from
// stdin; loss and log_sum [B, N], then the gradients of features and prototypes, as doubles to stdout.
#include "emulated_case.h"
#include "prototype_loss/prototype_loss.cuh"
#include "prototype_loss/prototype_loss_backward.cuh"

namespace {

using mmfl::device::Compute;
using mmfl::emulation::Order;
using mmfl::emulation::run_grid;

struct Nothing {};
constexpr int kThreads = mmfl::kLossThreads;

std::int64_t pieces(std::int64_t count, std::int64_t size) { return (count + size - 1) / size; }

template <typename E, bool kTf32>
void forward(const mmfl::PrototypeLossDevice& call, Order order) {
  using Shared = mmfl::device::LossShared<E>;
  run_grid<Shared>(call.args.groups * call.row_tiles * call.splits, 1, kThreads, order,
                   [&](Shared& shared) { mmfl::device::prototype_loss<E, kTf32>(call, shared); });
  if (call.splits > 1)
    run_grid<Nothing>(pieces(call.args.clients * call.args.rows, kThreads), 1, kThreads, order,
                      [&](Nothing&) { mmfl::device::prototype_loss_join<Compute<E>>(call); });
}

template <typename E, bool kTf32>
void backward(const mmfl::PrototypeLossBackwardDevice& call, Order order) {
  using Shared = mmfl::device::LossGradientShared<E>;
  const mmfl::PrototypeLossArgs& args = call.args;
  run_grid<Nothing>(pieces(args.clients * args.rows + args.groups * args.classes, mmfl::device::kLossWarps),
                    1, kThreads, order,
                    [&](Nothing&) { mmfl::device::prototype_loss_describe<Compute<E>>(call); });
  const std::int64_t blocks =
      call.features.sums * call.features.splits + call.prototypes.sums * call.prototypes.splits;
  run_grid<Shared>(blocks, 1, kThreads, order,
                   [&](Shared& shared) { mmfl::device::prototype_loss_backward<E, kTf32>(call, shared); });
}

template <typename E, bool kTf32>
void run(const mmfl::PrototypeLossDevice& first, const mmfl::PrototypeLossBackwardDevice& second,
         Order order) {
  forward<E, kTf32>(first, order);
  if (first.args.dims > 0) backward<E, kTf32>(second, order);
}

std::vector<double> as_doubles(const void* data, mmfl::DType dtype, std::int64_t count) {
  std::vector<double> values;
  for (std::int64_t i = 0; i < count; ++i)
    values.push_back(mmfl::device::load_element<double>({data, 1, dtype}, i));
  return values;
}

}  // namespace

int main() {
  Case input;
  const Order order = input.number() != 0 ? Order::kBackward : Order::kForward;
  mmfl::PrototypeLossArgs args;
  const std::int64_t blocks = input.number();
  args.clients = input.number();
  args.rows = input.number();
  args.dims = input.number();
  args.classes = input.number();
  args.groups = input.number();
  args.masks = input.number();
  args.normalise = input.number() != 0;
  args.in_double = input.number() != 0;
  args.tf32 = input.number() != 0;
  args.temperature = input.numbers(1)[0];
  args.threads = 1;
  const Case::Tensor features = input.tensor(), labels = input.tensor(), prototypes = input.tensor();
  const Case::Tensor mask = input.tensor(), upstream = input.tensor();
  const auto strided = [](const Case::Tensor& tensor) {
    return mmfl::Strided{
        tensor.data, {tensor.strides[0], tensor.strides[1], tensor.strides[2]}, tensor.dtype};
  };
  args.features = strided(features);
  args.labels = static_cast<const std::int64_t*>(labels.data);
  args.label_strides[0] = labels.strides[0];
  args.label_strides[1] = labels.strides[1];
  args.prototypes = strided(prototypes);
  args.class_mask = static_cast<const unsigned char*>(mask.data);

  const std::int64_t rows = args.clients * args.rows;
  const std::int64_t feature_count = rows * args.dims;
  const std::int64_t prototype_count = args.groups * args.classes * args.dims;
  const mmfl::DType dtype = args.in_double ? mmfl::DType::kFloat64 : mmfl::DType::kFloat32;
  const Bytes loss = nan_filled(rows * mmfl::size_of(dtype)),
              log_sum = nan_filled(rows * mmfl::size_of(dtype));
  const Bytes feature_gradient = nan_filled(feature_count * mmfl::size_of(args.features.dtype));
  const Bytes prototype_gradient = nan_filled(prototype_count * mmfl::size_of(args.prototypes.dtype));

  mmfl::PrototypeLossPlan first;
  mmfl::PrototypeLossBackwardPlan second;
  const mmfl::PrototypeLossGradients gradients{strided(upstream), loss.get(), log_sum.get(),
                                               feature_gradient.get(), prototype_gradient.get()};
  if (mmfl::plan_prototype_loss(args, loss.get(), log_sum.get(), first, blocks) != mmfl::Status::kOk ||
      mmfl::plan_prototype_loss_backward(args, gradients, second, blocks) != mmfl::Status::kOk)
    mmfl::emulation::fail("refused");
  const Bytes first_workspace = nan_filled(first.workspace_bytes);
  const Bytes second_workspace = nan_filled(second.workspace_bytes);
  mmfl::place_prototype_loss(first_workspace.get(), first);
  mmfl::place_prototype_loss_backward(second_workspace.get(), second);
  switch (first.elements) {
    case mmfl::LossElements::kDouble:
      run<double, false>(first.device, second.device, order);
      break;
    case mmfl::LossElements::kFloat:
      run<float, false>(first.device, second.device, order);
      break;
    case mmfl::LossElements::kTf32:
      run<float, true>(first.device, second.device, order);
      break;
    case mmfl::LossElements::kBFloat16:
      run<mmfl::device::BFloat16, true>(first.device, second.device, order);
      break;
    case mmfl::LossElements::kFloat16:
      run<mmfl::device::Float16, true>(first.device, second.device, order);
      break;
  }
  write_out(as_doubles(loss.get(), dtype, rows));
  write_out(as_doubles(log_sum.get(), dtype, rows));
  write_out(as_doubles(feature_gradient.get(), args.features.dtype, feature_count));
  write_out(as_doubles(prototype_gradient.get(), args.prototypes.dtype, prototype_count));
  return 0;
}
