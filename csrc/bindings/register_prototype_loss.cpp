#include <stdexcept>

#include "bindings/registration.h"
#include "bindings/tables.h"
#include "prototype_loss/prototype_loss.h"
#if defined(MMFL_HAVE_CUDA)
#include "prototype_loss/prototype_loss_cuda.h"
#include "prototype_loss/prototype_loss_plan.h"
#endif

namespace py = pybind11;

namespace mmfl {
namespace {

const void* pointer(std::int64_t address) { return reinterpret_cast<const void*>(address); }
void* writable(std::int64_t address) { return reinterpret_cast<void*>(address); }

Strided strided(const std::int64_t* fields) {
  return {pointer(fields[0]), {fields[1], fields[2], fields[3]}, static_cast<DType>(fields[4])};
}

// What the tables hold: sizes B, N, D, C, G, M; tensors a row each (pointer, three strides, dtype code) for
// features, labels, prototypes, class_mask.
PrototypeLossArgs arguments(const Int64Array& sizes, const Int64Array& tensors, double temperature,
                            bool normalise, bool in_double, bool tf32) {
  if (sizes.size() != 6 || tensors.size() != 20)
    throw std::invalid_argument("prototype_loss: sizes must be [6] and tensors [4, 5]");
  const std::int64_t* size = sizes.data();
  const std::int64_t* tensor = tensors.data();
  PrototypeLossArgs args;
  args.clients = size[0];
  args.rows = size[1];
  args.dims = size[2];
  args.classes = size[3];
  args.groups = size[4];
  args.masks = size[5];
  args.features = strided(tensor);
  args.labels = static_cast<const std::int64_t*>(pointer(tensor[5]));
  args.label_strides[0] = tensor[6];
  args.label_strides[1] = tensor[7];
  args.prototypes = strided(tensor + 10);
  args.class_mask = static_cast<const unsigned char*>(pointer(tensor[15]));
  args.temperature = temperature;
  args.normalise = normalise;
  args.in_double = in_double;
  args.tf32 = tf32;
  args.threads = 1;
  return args;
}

PrototypeLossGradients gradients_of(const Int64Array& loss_gradient, std::int64_t loss, std::int64_t log_sum,
                                    std::int64_t feature_gradient, std::int64_t prototype_gradient) {
  if (loss_gradient.size() != 5)
    throw std::invalid_argument("prototype_loss_backward: loss_gradient must be [5]");
  return {strided(loss_gradient.data()), pointer(loss), pointer(log_sum), writable(feature_gradient),
          writable(prototype_gradient)};
}

}  // namespace

void register_prototype_loss(py::module_& m) {
  m.def(
      "prototype_loss",
      [](const Int64Array& sizes, const Int64Array& tensors, double temperature, bool normalise,
         bool in_double, std::int64_t loss, std::int64_t log_sum, int threads) {
        PrototypeLossArgs args = arguments(sizes, tensors, temperature, normalise, in_double, false);
        args.threads = threads;
        std::int64_t bad_label = -1;
        Status status;
        {
          py::gil_scoped_release release;
          status = prototype_loss_cpu(args, writable(loss), writable(log_sum), &bad_label);
        }
        throw_unless_ok("prototype_loss", status);
        return bad_label;
      },
      py::arg("sizes"), py::arg("tensors"), py::arg("temperature"), py::arg("normalise"),
      py::arg("in_double"), py::arg("loss"), py::arg("log_sum"), py::arg("threads"));

  m.def(
      "prototype_loss_backward",
      [](const Int64Array& sizes, const Int64Array& tensors, double temperature, bool normalise,
         bool in_double, const Int64Array& loss_gradient, std::int64_t loss, std::int64_t log_sum,
         std::int64_t feature_gradient, std::int64_t prototype_gradient, int threads) {
        PrototypeLossArgs args = arguments(sizes, tensors, temperature, normalise, in_double, false);
        args.threads = threads;
        const PrototypeLossGradients gradients =
            gradients_of(loss_gradient, loss, log_sum, feature_gradient, prototype_gradient);
        Status status;
        {
          py::gil_scoped_release release;
          status = prototype_loss_backward_cpu(args, gradients);
        }
        throw_unless_ok("prototype_loss_backward", status);
      },
      py::arg("sizes"), py::arg("tensors"), py::arg("temperature"), py::arg("normalise"),
      py::arg("in_double"), py::arg("loss_gradient"), py::arg("loss"), py::arg("log_sum"),
      py::arg("feature_gradient"), py::arg("prototype_gradient"), py::arg("threads"));

#if defined(MMFL_HAVE_CUDA)
  m.def(
      "prototype_loss_cuda_workspace",
      [](const Int64Array& sizes, const Int64Array& tensors, double temperature, bool normalise,
         bool in_double, bool tf32) {
        PrototypeLossPlan plan;
        throw_unless_ok("prototype_loss", plan_prototype_loss(arguments(sizes, tensors, temperature,
                                                                        normalise, in_double, tf32),
                                                              nullptr, nullptr, plan));
        return plan.workspace_bytes;
      },
      py::arg("sizes"), py::arg("tensors"), py::arg("temperature"), py::arg("normalise"),
      py::arg("in_double"), py::arg("tf32"));
  m.def(
      "prototype_loss_cuda",
      [](const Int64Array& sizes, const Int64Array& tensors, double temperature, bool normalise,
         bool in_double, bool tf32, std::int64_t loss, std::int64_t log_sum, int device,
         std::uintptr_t stream, std::uintptr_t workspace, std::int64_t workspace_bytes) {
        const PrototypeLossArgs args = arguments(sizes, tensors, temperature, normalise, in_double, tf32);
        const CudaCall call{device, reinterpret_cast<void*>(stream), reinterpret_cast<void*>(workspace),
                            workspace_bytes};
        py::gil_scoped_release release;
        throw_unless_ok("prototype_loss", prototype_loss_cuda(args, writable(loss), writable(log_sum), call));
      },
      py::arg("sizes"), py::arg("tensors"), py::arg("temperature"), py::arg("normalise"),
      py::arg("in_double"), py::arg("tf32"), py::arg("loss"), py::arg("log_sum"), py::arg("device"),
      py::arg("stream"), py::arg("workspace"), py::arg("workspace_bytes"));
  m.def(
      "prototype_loss_backward_cuda_workspace",
      [](const Int64Array& sizes, const Int64Array& tensors, double temperature, bool normalise,
         bool in_double, bool tf32) {
        PrototypeLossBackwardPlan plan;
        throw_unless_ok("prototype_loss_backward",
                        plan_prototype_loss_backward(
                            arguments(sizes, tensors, temperature, normalise, in_double, tf32), {}, plan));
        return plan.workspace_bytes;
      },
      py::arg("sizes"), py::arg("tensors"), py::arg("temperature"), py::arg("normalise"),
      py::arg("in_double"), py::arg("tf32"));
  m.def(
      "prototype_loss_backward_cuda",
      [](const Int64Array& sizes, const Int64Array& tensors, double temperature, bool normalise,
         bool in_double, bool tf32, const Int64Array& loss_gradient, std::int64_t loss, std::int64_t log_sum,
         std::int64_t feature_gradient, std::int64_t prototype_gradient, int device, std::uintptr_t stream,
         std::uintptr_t workspace, std::int64_t workspace_bytes) {
        const PrototypeLossArgs args = arguments(sizes, tensors, temperature, normalise, in_double, tf32);
        const PrototypeLossGradients gradients =
            gradients_of(loss_gradient, loss, log_sum, feature_gradient, prototype_gradient);
        const CudaCall call{device, reinterpret_cast<void*>(stream), reinterpret_cast<void*>(workspace),
                            workspace_bytes};
        py::gil_scoped_release release;
        throw_unless_ok("prototype_loss_backward", prototype_loss_backward_cuda(args, gradients, call));
      },
      py::arg("sizes"), py::arg("tensors"), py::arg("temperature"), py::arg("normalise"),
      py::arg("in_double"), py::arg("tf32"), py::arg("loss_gradient"), py::arg("loss"), py::arg("log_sum"),
      py::arg("feature_gradient"), py::arg("prototype_gradient"), py::arg("device"), py::arg("stream"),
      py::arg("workspace"), py::arg("workspace_bytes"));
#endif
}

}  // namespace mmfl
