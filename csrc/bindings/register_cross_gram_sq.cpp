#include "bindings/registration.h"
#include "bindings/tables.h"
#include "cross_gram_sq/cross_gram_sq.h"

namespace py = pybind11;

namespace mmfl {

void register_cross_gram_sq(py::module_& m) {
  m.def(
      "cross_gram_sq",
      [](const Int64Array& blocks, std::int64_t batch, std::int64_t rows, std::int64_t dtype,
         bool mean_columns, bool normalise_rows, std::uintptr_t out, int threads) {
        constexpr std::int64_t kFields = sizeof(ViewBlock) / sizeof(std::int64_t);
        if (blocks.size() % kFields != 0) throw_unless_ok("cross_gram_sq", Status::kBadShape);
        const CrossGramSqArgs args{reinterpret_cast<const ViewBlock*>(blocks.data()),
                                   blocks.size() / kFields,
                                   batch,
                                   rows,
                                   static_cast<DType>(dtype),
                                   mean_columns,
                                   normalise_rows,
                                   reinterpret_cast<double*>(out),
                                   threads};
        py::gil_scoped_release release;
        throw_unless_ok("cross_gram_sq", cross_gram_sq_cpu(args));
      },
      py::arg("blocks"), py::arg("batch"), py::arg("rows"), py::arg("dtype"), py::arg("mean_columns"),
      py::arg("normalise_rows"), py::arg("out"), py::arg("threads"));
}

}  // namespace mmfl
