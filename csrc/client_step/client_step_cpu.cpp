#include "client_step/client_step.h"

namespace mmfl {
namespace {

bool within(std::int64_t number, std::int64_t count) { return number >= 0 && number < count; }

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
    const bool is_update = instruction.operation == Operation::kUpdateProduct;
    if (is_update || instruction.operation == Operation::kProduct ||
        instruction.operation == Operation::kAddProduct) {
      const StepValue& right = args.values[instruction.operand[1]];
      const std::int64_t needed =
          MMFL_DISPATCH_SIMD(step_packed_size, right.size[kMaxAxes - 2], right.size[kMaxAxes - 1]);
      if (needed > args.packed_size) return Status::kBadShape;
    }
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
