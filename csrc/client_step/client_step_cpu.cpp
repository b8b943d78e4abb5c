#include "client_step/client_step.h"

namespace mmfl {
namespace {

bool within(std::int64_t number, std::int64_t count) { return number >= 0 && number < count; }

// Floats that the right operand of a product takes.
std::int64_t packed_size_needed(const StepArgs& args, const StepInstruction& instruction) {
  const auto size = [&](int operand) { return args.values[instruction.operand[operand]].size; };
  std::int64_t depth = 0, columns = 0;
  switch (instruction.operation) {
    case Operation::kProduct:
    case Operation::kAddProduct:
    case Operation::kUpdateProduct:
      depth = size(1)[kMaxAxes - 2];
      columns = size(1)[kMaxAxes - 1];
      break;
    case Operation::kConvolve:
      depth = size(1)[1] * size(1)[2] * size(1)[3];
      columns = size(1)[0];
      break;
    case Operation::kConvolveWeights:
      depth = size(1)[1] * size(1)[2];
      depth *= summed_pictures(size(1)[0], depth);
      columns = size(1)[3];
      break;
    default:
      return 0;
  }
  return MMFL_DISPATCH_SIMD(step_packed_size, depth, columns);
}

Status check(const StepArgs& args) {
  if (args.row_count < 0 || args.batch_size < 1 || args.batch_size > args.capacity) return Status::kBadShape;
  if (!within(args.loss, args.value_count)) return Status::kBadShape;
  if (args.packed == nullptr || args.losses == nullptr) return Status::kNullPointer;
  for (std::int64_t b = 0; b < args.buffer_count; ++b)
    if (args.buffers[b] == nullptr || args.written[b] == nullptr) return Status::kNullPointer;
  for (std::int64_t v = 0; v < args.value_count; ++v)
    if (!within(args.values[v].buffer, args.buffer_count)) return Status::kBadShape;
  for (std::int64_t i = 0; i < args.input_count; ++i) {
    if (!within(args.inputs[i].buffer, args.buffer_count)) return Status::kBadShape;
    if (args.inputs[i].source == nullptr) return Status::kNullPointer;
  }
  for (std::int64_t i = 0; i < args.instruction_count; ++i) {
    const StepInstruction& instruction = args.instructions[i];
    if (!within(static_cast<std::int64_t>(instruction.operation),
                static_cast<std::int64_t>(Operation::kCount)) ||
        !within(instruction.output, args.value_count))
      return Status::kBadShape;
    for (const std::int64_t operand : instruction.operand)
      if (operand >= args.value_count) return Status::kBadShape;
    if (packed_size_needed(args, instruction) > args.packed_size) return Status::kBadShape;
  }
  return Status::kOk;
}

}  // namespace

Status client_step_cpu(const StepArgs& args, bool& finite) {
  const Status status = check(args);
  if (status != Status::kOk) return status;
  return MMFL_DISPATCH_SIMD(run_client_steps, args, finite);
}

}  // namespace mmfl
