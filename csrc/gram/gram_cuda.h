#pragma once

#include "common/cuda_call.h"
#include "gram/gram.h"

namespace mmfl {

// The contract of gram_cpu with the rows, `args.gram` and `args.row_mean` in the memory of one GPU; the
// tables themselves are host memory and free again when the call returns. Asynchronous, allocates nothing,
// and can be captured in a graph. `args.threads` is not used. The workspace takes plan_gram's bytes.
Status gram_cuda(const GramArgs& args, const CudaCall& call);

}  // namespace mmfl
