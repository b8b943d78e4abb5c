#pragma once

#include "common/cuda_call.h"
#include "prototype_loss/prototype_loss.h"

namespace mmfl {

// The contracts of prototype_loss_cpu and prototype_loss_backward_cpu with all tensors in the memory of one
// GPU, except that a label outside [0, C) is not refused: its row has a NaN loss and no gradient.
// Asynchronous, allocate nothing, and can be captured in a graph. `args.threads` is not used. The workspace
// takes the bytes of the plan.
Status prototype_loss_cuda(const PrototypeLossArgs& args, void* loss, void* log_sum, const CudaCall& call);

Status prototype_loss_backward_cuda(const PrototypeLossArgs& args, const PrototypeLossGradients& gradients,
                                    const CudaCall& call);

}  // namespace mmfl
