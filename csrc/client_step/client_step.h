#pragma once

#include <cstdint>

#include "common/simd_level.h"
#include "common/status.h"

namespace mmfl {

// What an instruction does with its operands; the numbers are those of
// mmfl_fast/kernels/client_step/instructions.py. Operands of elementwise operations broadcast by strides
// of 0. Truth values are 0 and 1.
enum class Operation : std::int64_t {
  kCopy,
  kNegate,
  kAbsolute,
  kSquareRoot,
  kExponential,
  kLogarithm,
  kLogOfOnePlus,
  kSine,
  kCosine,
  kHyperbolicTangent,
  kSigmoid,
  kRelu,
  kReluBackward,  // gradient a, input or result b
  kAdd,
  kSubtract,
  kMultiply,
  kDivide,
  kPower,
  kMaximum,
  kMinimum,
  kEqual,
  kNotEqual,
  kLess,
  kLessEqual,
  kSelect,              // a ? b : c
  kSum,                 // over the axes on which the output has stride 0
  kLargest,             // likewise
  kLogSoftmax,          // of rows [R, C]
  kLogSoftmaxBackward,  // gradient a, result b
  kPick,                // a [R, C], labels b [R]: out[r] = a[r, b[r]], 0 for an ignored label
  kSpread,              // values a [R], labels b [R]: out[r, b[r]] = a[r], 0 elsewhere
  kProduct,             // a [M, K] times b [K, N]
  kAddProduct,          // the same, added to what the output holds
  kUpdate,              // one step of SGD: parameter out, gradient a, velocity b or none
  kUpdateProduct,       // the same with gradient a b; velocity c or none
  kCount
};

constexpr int kMaxAxes = 4;

// A strided view of a buffer, in elements; leading axes of size 1 fill up to kMaxAxes.
struct StepValue {
  std::int64_t buffer;
  std::int64_t offset;
  std::int64_t size[kMaxAxes];
  std::int64_t stride[kMaxAxes];
};

// Operands are numbers of values, -1 for none.
struct StepInstruction {
  Operation operation;
  std::int64_t output;
  std::int64_t operand[3];
  std::int64_t ignored_label;
};

enum class Element : std::int64_t { kFloat32, kBool, kInt64 };

// Rows of one input of a batch.
struct StepInput {
  const void* source;  // [N, width], C order
  std::int64_t width;
  Element element;
  std::int64_t buffer;   // takes [capacity, width] as float32
  std::int64_t padding;  // fills the rows behind the last
};

// Some steps of one client: for each batch of rows gather, loss, gradients, SGD.
struct StepArgs {
  const StepValue* values;
  std::int64_t value_count;
  const StepInstruction* instructions;
  std::int64_t instruction_count;
  float* const* buffers;  // base addresses in the first step, with the parameters to start from
  float* const* written;  // base addresses from then on, where every update writes to
  std::int64_t buffer_count;
  const StepInput* inputs;
  std::int64_t input_count;
  const std::int64_t* rows;  // [row_count] numbers of the rows, batch by batch
  std::int64_t row_count;
  std::int64_t batch_size;  // of all batches but the last, which may be smaller
  std::int64_t capacity;    // rows that the instructions are made for
  float learning_rate;
  float momentum;
  float weight_decay;
  float* packed;  // room for the right operand of any product, packed
  std::int64_t packed_size;
  std::int64_t loss;  // number of the value that holds it
  float* losses;      // one per batch
};

// `finite` tells whether all parameters that were updated are.
Status client_step_cpu(const StepArgs& args, bool& finite);

MMFL_DECLARE_SIMD(Status run_client_steps(const StepArgs& args, bool& finite))
MMFL_DECLARE_SIMD(std::int64_t step_packed_size(std::int64_t depth, std::int64_t columns))

}  // namespace mmfl
