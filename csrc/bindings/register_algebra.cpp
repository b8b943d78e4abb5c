#include "algebra/algebra.h"
#include "bindings/registration.h"
#include "bindings/tensor_view.h"

namespace py = pybind11;

namespace mmfl {
namespace {

// Contiguous float64 tensors [K, K] and [K].
double* square_matrix(const TensorView& products) {
  if (products.dtype() != DType::kFloat64) throw_unless_ok("algebra", Status::kBadDtype);
  if (products.dims() != 2 || products.size(0) != products.size(1))
    throw_unless_ok("algebra", Status::kBadShape);
  return static_cast<double*>(products.data());
}

const double* vector_of(std::int64_t count, const TensorView& values) {
  if (values.dtype() != DType::kFloat64) throw_unless_ok("algebra", Status::kBadDtype);
  if (values.dims() != 1 || values.size(0) != count) throw_unless_ok("algebra", Status::kBadShape);
  return static_cast<const double*>(values.data());
}

using OfRows = void (*)(std::int64_t, double*, const double*, double, int);

void define_of_rows(py::module_& m, const char* name, OfRows step) {
  m.def(
      name,
      [step](py::handle products, py::handle row_mean, double negligible, int threads) {
        const TensorView matrix(products), means(row_mean);
        double* elements = square_matrix(matrix);
        const double* vector = vector_of(matrix.size(0), means);
        py::gil_scoped_release release;
        step(matrix.size(0), elements, vector, negligible, threads);
      },
      py::arg("products"), py::arg("row_mean"), py::arg("negligible"), py::arg("threads"));
}

}  // namespace

void register_algebra(py::module_& m) {
  define_of_rows(m, "cosine", &algebra::cosine);
  define_of_rows(m, "angular", &algebra::angular);
  m.def(
      "sq_distance",
      [](py::handle products, int threads) {
        const TensorView matrix(products);
        double* elements = square_matrix(matrix);
        py::gil_scoped_release release;
        algebra::sq_distance(matrix.size(0), elements, threads);
      },
      py::arg("products"), py::arg("threads"));
  m.def(
      "alignment",
      [](py::handle products, double noise, int threads) {
        const TensorView matrix(products);
        double* elements = square_matrix(matrix);
        py::gil_scoped_release release;
        algebra::alignment(matrix.size(0), elements, noise, threads);
      },
      py::arg("products"), py::arg("noise"), py::arg("threads"));
}

}  // namespace mmfl
