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
  kReluBackward,               // gradient a, input or result b
  kHyperbolicTangentBackward,  // gradient a, result b
  kSigmoidBackward,            // gradient a, result b
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
  kSumOfSquares,        // of all elements of a
  kLargest,             // likewise
  kLogSoftmax,          // of rows [R, C]
  kLogSoftmaxBackward,  // gradient a, result b
  kPick,                // a [R, C], labels b [R, 1]: out[r, 0] = a[r, b[r]], 0 for an ignored label
  kSpread,              // values a [R, 1], labels b [R, 1]: out[r, b[r]] = a[r], 0 elsewhere
  kTakeRows,            // a [C, D], row numbers b [R, 1]: out[r] = a[b[r]]
  kProduct,             // a [M, K] times b [K, N], or as many such pairs as the axis before has
  kAddProduct,          // the same, added to what the output holds
  kConvolve,            // padded pictures a [B, H, W, C], kernels b [O, C, h, w], bias c [O] or none: out
                        // [B, H - h + 1, W - w + 1, O]
  kConvolveWeights,     // padded pictures a and gradients b [B, .., .., O]: out [O, C, h, w]
  kMaxPool,             // a [B, H, W, C] with H, W or both halved, rounded up: the largest of each window
  kMaxPoolBackward,     // gradient a, pictures b
  kMaxPoolPlaces,       // of kMaxPool: where in its picture the largest lies, line * W + pixel
  kUpdate,              // one step of SGD: parameter out, gradient a times factor b, velocity c or none
  kUpdateProduct,       // the same with gradient a b; velocity c or none
  kUpdateMoments,       // of Adam: mean out, gradient a times factor b, mean c of squares
  kUpdateByMoments,     // one step of Adam: parameter out, mean a, mean b of squares
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

// Of SGD the first three. Of Adam, whose weight decay is decoupled, all but the momentum; its rate falls to 0
// as half a cosine in `cosine_period` steps, or is constant where that is 0.
struct OptimiserArgs {
  double learning_rate;
  double momentum;
  double weight_decay;
  double beta1;
  double beta2;
  double epsilon;
  double steps_before;
  double cosine_period;
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
  OptimiserArgs optimiser;
  float* packed;  // room for the right operand of any product, packed
  std::int64_t packed_size;
  std::int64_t loss;  // number of the value that holds it
  float* losses;      // one per batch
};

// Pixels whose gradients are added up in registers before they are added to those of the others: they stay in
// cache, and long sums lose less. Known to mmfl_fast/kernels/client_step/program.py, too.
constexpr std::int64_t kSummedPixels = 1024;

// How many pictures of so many pixels these are.
static constexpr std::int64_t summed_pictures(std::int64_t pictures, std::int64_t pixels) {
  const std::int64_t fitting = kSummedPixels / (pixels > 0 ? pixels : 1);
  return fitting < 1 ? 1 : fitting < pictures ? fitting : pictures;
}

// `finite` tells whether all parameters that were updated are.
Status client_step_cpu(const StepArgs& args, bool& finite);

MMFL_DECLARE_SIMD(Status run_client_steps(const StepArgs& args, bool& finite))
MMFL_DECLARE_SIMD(std::int64_t step_packed_size(std::int64_t depth, std::int64_t columns))

}  // namespace mmfl
