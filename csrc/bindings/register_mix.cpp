#include "bindings/registration.h"
#include "bindings/tables.h"
#include "mix/mix.h"

namespace py = pybind11;

namespace mmfl {

void register_mix(py::module_& m) {
  m.def(
      "mix",
      [](const Int64Array& blocks, const Int64Array& widths, const Int64Array& outputs, std::uintptr_t matrix,
         std::int64_t matrix_rows, std::int64_t matrix_columns, std::uintptr_t row_offset,
         bool centre_columns, int threads) {
        MixArgs args;
        args.segments = widths.size();
        args.blocks = row_blocks(blocks, args.segments, args.grid_rows);
        args.widths = widths.data();
        std::int64_t output_lines = 0;
        args.outputs = row_blocks(outputs, args.segments, output_lines);
        if (args.segments > 0 && output_lines != 1) throw_unless_ok("mix", Status::kBadShape);
        args.matrix = reinterpret_cast<const double*>(matrix);
        args.row_offset = reinterpret_cast<const double*>(row_offset);
        args.matrix_rows = matrix_rows;
        args.matrix_columns = matrix_columns;
        args.centre_columns = centre_columns;
        args.threads = threads;
        py::gil_scoped_release release;
        throw_unless_ok("mix", mix_cpu(args));
      },
      py::arg("blocks"), py::arg("widths"), py::arg("outputs"), py::arg("matrix"), py::arg("matrix_rows"),
      py::arg("matrix_columns"), py::arg("row_offset"), py::arg("centre_columns"), py::arg("threads"));
}

}  // namespace mmfl
