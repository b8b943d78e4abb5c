#include "algebra/algebra.h"
#include "bindings/registration.h"
#include "bindings/tensor_view.h"
#if defined(MMFL_HAVE_CUDA)
#include "algebra/algebra_cuda.h"
#endif

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

#if defined(MMFL_HAVE_CUDA)
void define_on_gpu(py::module_& m, const char* name, algebra::Step step) {
  m.def(
      name,
      [name, step](py::handle products, py::handle row_mean, double threshold, py::handle out, int device,
                   std::uintptr_t stream) {
        const TensorView matrix(products), result(out);
        AlgebraDevice args;
        args.count = matrix.size(0);
        args.products = square_matrix(matrix);
        args.threshold = threshold;
        args.out = square_matrix(result);
        if (result.size(0) != args.count) throw_unless_ok(name, Status::kBadShape);
        if (!row_mean.is_none()) args.row_mean = vector_of(args.count, TensorView(row_mean));
        py::gil_scoped_release release;
        throw_unless_ok(name,
                        algebra_cuda(step, args, {device, reinterpret_cast<void*>(stream), nullptr, 0}));
      },
      py::arg("products"), py::arg("row_mean").none(true), py::arg("threshold"), py::arg("out"),
      py::arg("device"), py::arg("stream"));
}
#endif

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
#if defined(MMFL_HAVE_CUDA)
  define_on_gpu(m, "cosine_cuda", algebra::Step::kCosine);
  define_on_gpu(m, "angular_cuda", algebra::Step::kAngular);
  define_on_gpu(m, "sq_distance_cuda", algebra::Step::kSqDistance);
  define_on_gpu(m, "alignment_cuda", algebra::Step::kAlignment);
#endif
}

}  // namespace mmfl
