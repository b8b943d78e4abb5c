#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bindings/registration.h"
#include "bindings/tensor_view.h"
#include "common/simd_level.h"
#if defined(MMFL_HAVE_CUDA)
#include "common/cuda_devices.h"
#endif

namespace py = pybind11;

PYBIND11_MODULE(_C, m, py::mod_gil_not_used()) {
  m.doc() = "Kernels of mmfl_fast. They take torch tensors; callers check them; see mmfl_fast.kernels.";
  m.def("set_exchange", &mmfl::set_exchange, py::arg("capsule").none(true));
  m.def("alike", &mmfl::alike, py::arg("tensors"), py::arg("segments"), py::arg("types"));
  mmfl::register_gram(m);
  mmfl::register_mix(m);
  mmfl::register_cross_gram_sq(m);
  mmfl::register_prototype_loss(m);
  mmfl::register_algebra(m);
  mmfl::register_client_step(m);
  mmfl::register_threads(m);

  m.def("simd_level", [] { return mmfl::name(mmfl::simd_level()); });
#if defined(MMFL_HAVE_CUDA)
  m.attr("built_with_cuda") = true;
  m.def("cuda_report", [] {
    const mmfl::CudaReport report = mmfl::cuda_report();
    py::list devices;
    for (const auto& device : report.devices)
      devices.append(py::make_tuple(device.name, device.major, device.minor));
    return py::make_tuple(report.runtime_version, report.driver_version, report.error, devices);
  });
#else
  m.attr("built_with_cuda") = false;
#endif
}
