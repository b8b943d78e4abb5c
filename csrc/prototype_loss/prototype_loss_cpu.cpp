#include "common/thread_pool.h"
#include "prototype_loss/prototype_loss.h"
#include "prototype_loss/prototype_loss_check.h"

namespace mmfl {
namespace {

PrototypeLossArgs with_useful_threads(PrototypeLossArgs args) {
  const double logits = static_cast<double>(args.clients * args.rows) * static_cast<double>(args.classes);
  args.threads = threads_for(logits * static_cast<double>(args.dims), args.threads);
  return args;
}

std::int64_t first_bad_label(const PrototypeLossArgs& args) {
  for (std::int64_t b = 0; b < args.clients; ++b) {
    const std::int64_t* labels = args.labels + b * args.label_strides[0];
    for (std::int64_t n = 0; n < args.rows; ++n) {
      const std::int64_t label = labels[n * args.label_strides[1]];
      if (label != kIgnoredLabel && (label < 0 || label >= args.classes)) return b * args.rows + n;
    }
  }
  return -1;
}

}  // namespace

Status prototype_loss_cpu(const PrototypeLossArgs& args, void* loss, void* log_sum, std::int64_t* bad_label) {
  *bad_label = -1;
  const Status status = check_prototype_loss(args);
  if (status != Status::kOk) return status;
  if (args.clients * args.rows == 0) return Status::kOk;
  if (loss == nullptr || log_sum == nullptr) return Status::kNullPointer;
  *bad_label = first_bad_label(args);
  if (*bad_label >= 0) return Status::kOk;
  return MMFL_DISPATCH_SIMD(prototype_loss, with_useful_threads(args), loss, log_sum);
}

Status prototype_loss_backward_cpu(const PrototypeLossArgs& args, const PrototypeLossGradients& gradients) {
  const Status status = check_prototype_loss(args);
  if (status != Status::kOk) return status;
  if (first_bad_label(args) >= 0) return Status::kBadShape;
  const std::int64_t count = args.clients * args.rows;
  if (count > 0 &&
      (gradients.loss_gradient.data == nullptr || gradients.loss == nullptr || gradients.log_sum == nullptr))
    return Status::kNullPointer;
  if (count * args.dims > 0 && gradients.feature_gradient == nullptr) return Status::kNullPointer;
  if (args.groups * args.dims > 0 && gradients.prototype_gradient == nullptr) return Status::kNullPointer;
  return MMFL_DISPATCH_SIMD(prototype_loss_backward, with_useful_threads(args), gradients);
}

}  // namespace mmfl
