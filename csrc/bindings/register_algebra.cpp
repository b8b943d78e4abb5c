#include "algebra/algebra.h"
#include "bindings/registration.h"
#include "bindings/tensor_view.h"

namespace py = pybind11;

namespace mmfl {
namespace {

// A contiguous float64 tensor of `dims` axes of length `count`.
double* float64(py::handle tensor, std::int64_t dims, std::int64_t count) {
  const TensorView view(tensor);
  if (view.dtype() != DType::kFloat64) throw_unless_ok("algebra", Status::kBadDtype);
  bool fits = view.dims() == dims;
  for (std::int64_t axis = 0; fits && axis < dims; ++axis) fits = view.size(axis) == count;
  if (!fits) throw_unless_ok("algebra", Status::kBadShape);
  return static_cast<double*>(view.data());
}

std::int64_t length(py::handle tensor) {
  const TensorView view(tensor);
  if (view.dims() == 0) throw_unless_ok("algebra", Status::kBadShape);
  return view.size(0);
}

using OfRows = void (*)(std::int64_t, const double*, const double*, double, double*);

void define_of_rows(py::module_& m, const char* name, OfRows step) {
  m.def(
      name,
      [step](py::handle products, py::handle row_mean, double negligible, py::handle out) {
        const std::int64_t count = length(products);
        step(count, float64(products, 2, count), float64(row_mean, 1, count), negligible,
             float64(out, 2, count));
      },
      py::arg("products"), py::arg("row_mean"), py::arg("negligible"), py::arg("out"));
}

}  // namespace

void register_algebra(py::module_& m) {
  define_of_rows(m, "cosine", &algebra::cosine);
  define_of_rows(m, "angular", &algebra::angular);
  m.def(
      "sq_distance",
      [](py::handle products, py::handle out) {
        const std::int64_t count = length(products);
        algebra::sq_distance(count, float64(products, 2, count), float64(out, 2, count));
      },
      py::arg("products"), py::arg("out"));
  m.def(
      "alignment",
      [](py::handle products, double noise, py::handle out) {
        const std::int64_t count = length(products);
        algebra::alignment(count, float64(products, 2, count), noise, float64(out, 2, count));
      },
      py::arg("products"), py::arg("noise"), py::arg("out"));
  m.def(
      "mean_loss",
      [](py::handle losses, py::handle labels, py::handle class_mask, py::handle out) {
        const TensorView loss(losses), y(labels);
        if (loss.dims() != 2 || y.dims() != 2) throw_unless_ok("mean_loss", Status::kBadShape);
        algebra::CountedLosses args{};
        args.losses = loss.data();
        args.in_double = loss.dtype() == DType::kFloat64;
        args.clients = loss.size(0);
        args.rows = loss.size(1);
        args.labels = static_cast<const std::int64_t*>(y.data());
        args.label_strides[0] = y.stride(0);
        args.label_strides[1] = y.stride(1);
        if (!class_mask.is_none()) {
          const TensorView mask(class_mask);
          if (mask.dims() != 2) throw_unless_ok("mean_loss", Status::kBadShape);
          args.class_mask = static_cast<const unsigned char*>(mask.data());
          args.masks = mask.size(0);
          args.classes = mask.size(1);
        }
        algebra::mean_loss(args, TensorView(out).data());
      },
      py::arg("losses"), py::arg("labels"), py::arg("class_mask").none(true),
      py::arg("out"));
}

}  // namespace mmfl
