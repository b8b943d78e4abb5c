#pragma once

#include "common/cuda_call.h"
#include "cross_gram_sq/cross_gram_sq.h"

namespace mmfl {

// The contract of cross_gram_sq_cpu with the views and `args.out` in the memory of one GPU; the table of
// blocks is host memory and free again when the call returns. Asynchronous, allocates nothing, and can be
// captured in a graph. `args.threads` is not used. The workspace takes plan_cross_gram_sq's bytes.
Status cross_gram_sq_cuda(const CrossGramSqArgs& args, const CudaCall& call);

}  // namespace mmfl
