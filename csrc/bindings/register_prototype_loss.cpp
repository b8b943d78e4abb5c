#include "bindings/registration.h"
#include "bindings/tensor_view.h"
#include "prototype_loss/prototype_loss.h"
#if defined(MMFL_HAVE_CUDA)
#include "bindings/cuda_place.h"
#include "prototype_loss/prototype_loss_cuda.h"
#include "prototype_loss/prototype_loss_plan.h"
#endif

namespace py = pybind11;

namespace mmfl {
namespace {

void require(bool condition, Status otherwise) {
  if (!condition) throw_unless_ok("prototype_loss", otherwise);
}

Strided strided(const TensorView& tensor) {
  Strided result{tensor.data(), {}, tensor.dtype()};
  require(tensor.dims() <= 3, Status::kBadShape);
  for (std::int64_t axis = 0; axis < tensor.dims(); ++axis) result.strides[axis] = tensor.stride(axis);
  return result;
}

// Features [B, N, D], labels [B, N], prototypes [G, C, D], class_mask [M, C] contiguous or None. `loss` is
// of the type of the arithmetic.
PrototypeLossArgs prototype_loss_args(py::handle features, py::handle labels, py::handle prototypes,
                                      py::handle class_mask, double temperature, bool normalise, bool tf32,
                                      py::handle loss) {
  const TensorView f(features), y(labels), p(prototypes);
  require(f.dims() == 3 && y.dims() == 2 && p.dims() == 3, Status::kBadShape);
  require(y.size(0) == f.size(0) && y.size(1) == f.size(1) && p.size(2) == f.size(2), Status::kBadShape);
  require(y.has(dlpack::kInt, 64), Status::kBadDtype);
  PrototypeLossArgs args;
  args.clients = f.size(0);
  args.rows = f.size(1);
  args.dims = f.size(2);
  args.classes = p.size(1);
  args.groups = p.size(0);
  args.masks = 0;
  args.features = strided(f);
  args.labels = static_cast<const std::int64_t*>(y.data());
  args.label_strides[0] = y.stride(0);
  args.label_strides[1] = y.stride(1);
  args.prototypes = strided(p);
  args.class_mask = nullptr;
  if (!class_mask.is_none()) {
    const TensorView mask(class_mask);
    require(mask.dims() == 2 && mask.size(1) == args.classes, Status::kBadShape);
    require(mask.has(dlpack::kBool, 8), Status::kBadDtype);
    args.masks = mask.size(0);
    args.class_mask = static_cast<const unsigned char*>(mask.data());
  }
  args.temperature = temperature;
  args.normalise = normalise;
  args.in_double = TensorView(loss).dtype() == DType::kFloat64;
  args.tf32 = tf32;
  args.threads = 1;
  return args;
}

PrototypeLossGradients gradients_of(py::handle loss_gradient, py::handle loss, py::handle log_sum,
                                    py::handle feature_gradient, py::handle prototype_gradient) {
  return {strided(TensorView(loss_gradient)), TensorView(loss).data(), TensorView(log_sum).data(),
          TensorView(feature_gradient).data(), TensorView(prototype_gradient).data()};
}

}  // namespace

void register_prototype_loss(py::module_& m) {
  m.def(
      "prototype_loss",
      [](py::handle features, py::handle labels, py::handle prototypes, py::handle class_mask,
         double temperature, bool normalise, py::handle loss, py::handle log_sum, int threads) {
        PrototypeLossArgs args = prototype_loss_args(features, labels, prototypes, class_mask, temperature,
                                                     normalise, false, loss);
        args.threads = threads;
        void *losses = TensorView(loss).data(), *log_sums = TensorView(log_sum).data();
        std::int64_t bad_label = -1;
        Status status;
        {
          py::gil_scoped_release release;
          status = prototype_loss_cpu(args, losses, log_sums, &bad_label);
        }
        throw_unless_ok("prototype_loss", status);
        return bad_label;
      },
      py::arg("features"), py::arg("labels"), py::arg("prototypes"), py::arg("class_mask").none(true),
      py::arg("temperature"), py::arg("normalise"), py::arg("loss"), py::arg("log_sum"), py::arg("threads"));

  m.def(
      "prototype_loss_backward",
      [](py::handle loss_gradient, py::handle loss, py::handle log_sum, py::handle features,
         py::handle labels, py::handle prototypes, py::handle class_mask, double temperature, bool normalise,
         py::handle feature_gradient, py::handle prototype_gradient, int threads) {
        PrototypeLossArgs args = prototype_loss_args(features, labels, prototypes, class_mask, temperature,
                                                     normalise, false, loss);
        args.threads = threads;
        const PrototypeLossGradients gradients =
            gradients_of(loss_gradient, loss, log_sum, feature_gradient, prototype_gradient);
        py::gil_scoped_release release;
        throw_unless_ok("prototype_loss_backward", prototype_loss_backward_cpu(args, gradients));
      },
      py::arg("loss_gradient"), py::arg("loss"), py::arg("log_sum"), py::arg("features"), py::arg("labels"),
      py::arg("prototypes"), py::arg("class_mask").none(true), py::arg("temperature"), py::arg("normalise"),
      py::arg("feature_gradient"), py::arg("prototype_gradient"), py::arg("threads"));

#if defined(MMFL_HAVE_CUDA)
  m.def(
      "prototype_loss_cuda",
      [](py::handle features, py::handle labels, py::handle prototypes, py::handle class_mask,
         double temperature, bool normalise, bool tf32, py::handle loss, py::handle log_sum, int device,
         std::uintptr_t stream, const py::function& allocate) {
        const PrototypeLossArgs args = prototype_loss_args(features, labels, prototypes, class_mask,
                                                           temperature, normalise, tf32, loss);
        void *losses = TensorView(loss).data(), *log_sums = TensorView(log_sum).data();
        PrototypeLossPlan plan;
        throw_unless_ok("prototype_loss", plan_prototype_loss(args, losses, log_sums, plan));
        const CudaPlace place(device, stream, allocate, plan.workspace_bytes);
        py::gil_scoped_release release;
        throw_unless_ok("prototype_loss", prototype_loss_cuda(args, losses, log_sums, place.call()));
      },
      py::arg("features"), py::arg("labels"), py::arg("prototypes"), py::arg("class_mask").none(true),
      py::arg("temperature"), py::arg("normalise"), py::arg("tf32"), py::arg("loss"), py::arg("log_sum"),
      py::arg("device"), py::arg("stream"), py::arg("allocate"));

  m.def(
      "prototype_loss_backward_cuda",
      [](py::handle loss_gradient, py::handle loss, py::handle log_sum, py::handle features,
         py::handle labels, py::handle prototypes, py::handle class_mask, double temperature, bool normalise,
         bool tf32, py::handle feature_gradient, py::handle prototype_gradient, int device,
         std::uintptr_t stream, const py::function& allocate) {
        const PrototypeLossArgs args = prototype_loss_args(features, labels, prototypes, class_mask,
                                                           temperature, normalise, tf32, loss);
        const PrototypeLossGradients gradients =
            gradients_of(loss_gradient, loss, log_sum, feature_gradient, prototype_gradient);
        PrototypeLossBackwardPlan plan;
        throw_unless_ok("prototype_loss_backward", plan_prototype_loss_backward(args, gradients, plan));
        const CudaPlace place(device, stream, allocate, plan.workspace_bytes);
        py::gil_scoped_release release;
        throw_unless_ok("prototype_loss_backward",
                        prototype_loss_backward_cuda(args, gradients, place.call()));
      },
      py::arg("loss_gradient"), py::arg("loss"), py::arg("log_sum"), py::arg("features"), py::arg("labels"),
      py::arg("prototypes"), py::arg("class_mask").none(true), py::arg("temperature"), py::arg("normalise"),
      py::arg("tf32"), py::arg("feature_gradient"), py::arg("prototype_gradient"), py::arg("device"),
      py::arg("stream"), py::arg("allocate"));
#endif
}

}  // namespace mmfl
