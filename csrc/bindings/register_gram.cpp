#include "bindings/registration.h"
#include "bindings/tables.h"
#include "gram/gram.h"

namespace py = pybind11;

namespace mmfl {

void register_gram(py::module_& m) {
  m.def(
      "gram",
      [](const Int64Array& blocks, const Int64Array& widths, const Int64Array& origin, bool mean_origin,
         bool centre_rows, std::uintptr_t gram, std::uintptr_t row_mean, int threads) {
        GramArgs args;
        args.segments = widths.size();
        args.blocks = row_blocks(blocks, args.segments, args.grid_rows);
        args.widths = widths.data();
        std::int64_t origins = 0;
        args.origin = row_blocks(origin, args.segments, origins);
        if (origins == 0) args.origin = nullptr;
        args.mean_origin = mean_origin;
        args.centre_rows = centre_rows;
        args.gram = reinterpret_cast<double*>(gram);
        args.row_mean = reinterpret_cast<double*>(row_mean);
        args.threads = threads;
        py::gil_scoped_release release;
        throw_unless_ok("gram", gram_cpu(args));
      },
      py::arg("blocks"), py::arg("widths"), py::arg("origin"), py::arg("mean_origin"), py::arg("centre_rows"),
      py::arg("gram"), py::arg("row_mean"), py::arg("threads"));
}

}  // namespace mmfl
