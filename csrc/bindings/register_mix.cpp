#include "bindings/registration.h"
#include "bindings/tables.h"
#include "mix/mix.h"
#if defined(MMFL_HAVE_CUDA)
#include "mix/mix_cuda.h"
#include "mix/mix_plan.h"
#endif

namespace py = pybind11;

namespace mmfl {
namespace {

MixArgs mix_args(const Int64Array& blocks, const Int64Array& widths, const Int64Array& outputs,
                 std::uintptr_t matrix, std::int64_t matrix_rows, std::int64_t matrix_columns,
                 std::uintptr_t row_offset, bool centre_columns) {
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
  args.threads = 1;
  return args;
}

}  // namespace

void register_mix(py::module_& m) {
  m.def(
      "mix",
      [](const Int64Array& blocks, const Int64Array& widths, const Int64Array& outputs, std::uintptr_t matrix,
         std::int64_t matrix_rows, std::int64_t matrix_columns, std::uintptr_t row_offset,
         bool centre_columns, int threads) {
        MixArgs args = mix_args(blocks, widths, outputs, matrix, matrix_rows, matrix_columns, row_offset,
                                centre_columns);
        args.threads = threads;
        py::gil_scoped_release release;
        throw_unless_ok("mix", mix_cpu(args));
      },
      py::arg("blocks"), py::arg("widths"), py::arg("outputs"), py::arg("matrix"), py::arg("matrix_rows"),
      py::arg("matrix_columns"), py::arg("row_offset"), py::arg("centre_columns"), py::arg("threads"));

#if defined(MMFL_HAVE_CUDA)
  m.def(
      "mix_cuda_workspace",
      [](const Int64Array& blocks, const Int64Array& widths, const Int64Array& outputs, std::uintptr_t matrix,
         std::int64_t matrix_rows, std::int64_t matrix_columns, std::uintptr_t row_offset,
         bool centre_columns) {
        MixPlan plan;
        throw_unless_ok("mix", plan_mix(mix_args(blocks, widths, outputs, matrix, matrix_rows, matrix_columns,
                                                 row_offset, centre_columns),
                                        plan));
        return plan.workspace_bytes;
      },
      py::arg("blocks"), py::arg("widths"), py::arg("outputs"), py::arg("matrix"), py::arg("matrix_rows"),
      py::arg("matrix_columns"), py::arg("row_offset"), py::arg("centre_columns"));
  m.def(
      "mix_cuda",
      [](const Int64Array& blocks, const Int64Array& widths, const Int64Array& outputs, std::uintptr_t matrix,
         std::int64_t matrix_rows, std::int64_t matrix_columns, std::uintptr_t row_offset,
         bool centre_columns, int device, std::uintptr_t stream, std::uintptr_t workspace,
         std::int64_t workspace_bytes) {
        const MixArgs args = mix_args(blocks, widths, outputs, matrix, matrix_rows, matrix_columns,
                                      row_offset, centre_columns);
        const CudaCall call{device, reinterpret_cast<void*>(stream), reinterpret_cast<void*>(workspace),
                            workspace_bytes};
        py::gil_scoped_release release;
        throw_unless_ok("mix", mix_cuda(args, call));
      },
      py::arg("blocks"), py::arg("widths"), py::arg("outputs"), py::arg("matrix"), py::arg("matrix_rows"),
      py::arg("matrix_columns"), py::arg("row_offset"), py::arg("centre_columns"), py::arg("device"),
      py::arg("stream"), py::arg("workspace"), py::arg("workspace_bytes"));
#endif
}

}  // namespace mmfl
