#pragma once

#include "common/cuda_call.h"
#include "mix/mix.h"

namespace mmfl {

// The contract of mix_cpu with the rows, the matrix, the offsets and the outputs in the memory of one GPU;
// the tables themselves are host memory and free again when the call returns. Asynchronous, allocates
// nothing, and can be captured in a graph. `args.threads` is not used. The workspace takes plan_mix's bytes.
Status mix_cuda(const MixArgs& args, const CudaCall& call);

}  // namespace mmfl
