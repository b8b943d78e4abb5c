#include <vector>

#include "algebra/algebra.h"
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

// The last `axes` axes; those that are not there, the first ones, have the stride 0.
Strided strided(const TensorView& tensor, std::int64_t axes) {
  Strided result{tensor.data(), {}, tensor.dtype()};
  const std::int64_t absent = axes - tensor.dims();
  require(absent >= 0, Status::kBadShape);
  for (std::int64_t axis = absent; axis < axes; ++axis) result.strides[axis] = tensor.stride(axis - absent);
  return result;
}

// Features [B, N, D], labels [B, N], prototypes [G, C, D], class_mask [M, C] contiguous or None; an axis B, G
// or M of length 1 may be left out. `loss` is of the type of the arithmetic.
PrototypeLossArgs prototype_loss_args(py::handle features, py::handle labels, py::handle prototypes,
                                      py::handle class_mask, double temperature, bool normalise, bool tf32,
                                      py::handle loss) {
  const TensorView f(features), y(labels), p(prototypes);
  require(f.dims() >= 2 && y.dims() == f.dims() - 1 && p.dims() >= 2, Status::kBadShape);
  for (std::int64_t axis = 0; axis < y.dims(); ++axis)
    require(y.size(axis) == f.size(axis), Status::kBadShape);
  require(p.size(-1) == f.size(-1), Status::kBadShape);
  require(y.has(dlpack::kInt, 64), Status::kBadDtype);
  PrototypeLossArgs args;
  args.clients = f.dims() == 3 ? f.size(0) : 1;
  args.rows = f.size(-2);
  args.dims = f.size(-1);
  args.classes = p.size(-2);
  args.groups = p.dims() == 3 ? p.size(0) : 1;
  args.masks = 0;
  args.features = strided(f, 3);
  args.labels = static_cast<const std::int64_t*>(y.data());
  args.label_strides[0] = y.dims() == 2 ? y.stride(0) : 0;
  args.label_strides[1] = y.stride(-1);
  args.prototypes = strided(p, 3);
  args.class_mask = nullptr;
  if (!class_mask.is_none()) {
    const TensorView mask(class_mask);
    require((mask.dims() == 1 || mask.dims() == 2) && mask.size(-1) == args.classes, Status::kBadShape);
    require(mask.has(dlpack::kBool, 8), Status::kBadDtype);
    args.masks = mask.dims() == 2 ? mask.size(0) : 1;
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
  return {strided(TensorView(loss_gradient), 2), TensorView(loss).data(), TensorView(log_sum).data(),
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
      "mean_prototype_loss",
      [](py::handle features, py::handle labels, py::handle prototypes, py::handle class_mask,
         double temperature, bool normalise, py::handle out, int threads) {
        PrototypeLossArgs args =
            prototype_loss_args(features, labels, prototypes, class_mask, temperature, normalise, false, out);
        args.threads = threads;
        void* mean = TensorView(out).data();
        // Room for either type.
        const auto count = static_cast<std::size_t>(args.clients * args.rows);
        std::vector<double> losses(count), log_sums(count);
        std::int64_t bad_label = -1;
        Status status;
        {
          py::gil_scoped_release release;
          status = prototype_loss_cpu(args, losses.data(), log_sums.data(), &bad_label);
          if (status == Status::kOk && bad_label < 0) algebra::mean_loss(args, losses.data(), mean);
        }
        throw_unless_ok("mean_prototype_loss", status);
        return bad_label;
      },
      py::arg("features"), py::arg("labels"), py::arg("prototypes"), py::arg("class_mask").none(true),
      py::arg("temperature"), py::arg("normalise"), py::arg("out"), py::arg("threads"));

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
        const PrototypeLossArgs args =
            prototype_loss_args(features, labels, prototypes, class_mask, temperature, normalise, tf32, loss);
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
        const PrototypeLossArgs args =
            prototype_loss_args(features, labels, prototypes, class_mask, temperature, normalise, tf32, loss);
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
