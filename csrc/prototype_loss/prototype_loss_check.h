#pragma once

#include "prototype_loss/prototype_loss.h"

namespace mmfl {

// Of what every implementation is given.
inline Status check_prototype_loss(const PrototypeLossArgs& args) {
  if (args.clients < 0 || args.rows < 0 || args.dims < 0 || args.classes < 1 || args.groups < 0 ||
      args.masks < 0)
    return Status::kBadShape;
  if (args.clients > 0 && (args.groups == 0 || args.clients % args.groups != 0)) return Status::kBadShape;
  if (args.masks > 0 && args.clients % args.masks != 0) return Status::kBadShape;
  if (!(args.temperature > 0)) return Status::kBadShape;
  if (!is_known(args.features.dtype) || !is_known(args.prototypes.dtype)) return Status::kBadDtype;
  const std::int64_t count = args.clients * args.rows;
  if (count > 0 && args.labels == nullptr) return Status::kNullPointer;
  if (count * args.dims > 0 && args.features.data == nullptr) return Status::kNullPointer;
  if (args.groups * args.dims > 0 && args.prototypes.data == nullptr) return Status::kNullPointer;
  if (args.masks > 0 && args.class_mask == nullptr) return Status::kNullPointer;
  return Status::kOk;
}

}  // namespace mmfl
