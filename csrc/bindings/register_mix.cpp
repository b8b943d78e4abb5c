#include "bindings/registration.h"
#include "bindings/row_grid.h"
#include "bindings/tensor_view.h"
#include "mix/mix.h"
#if defined(MMFL_HAVE_CUDA)
#include "bindings/cuda_place.h"
#include "mix/mix_cuda.h"
#include "mix/mix_plan.h"
#endif

namespace py = pybind11;

namespace mmfl {
namespace {

// `matrix` and `row_offset` are contiguous; there may be no row offset.
MixArgs mix_args(const RowGrid& rows, const RowGrid& outputs, py::handle matrix, py::handle row_offset,
                 bool centre_columns) {
  if (outputs.grid_rows() != 1 || outputs.widths() != rows.widths()) throw_unless_ok("mix", Status::kBadShape);
  const TensorView weights(matrix);
  if (weights.dims() != 2) throw_unless_ok("mix", Status::kBadShape);
  if (weights.dtype() != DType::kFloat64) throw_unless_ok("mix", Status::kBadDtype);
  MixArgs args;
  args.segments = static_cast<std::int64_t>(rows.widths().size());
  args.blocks = rows.blocks();
  args.grid_rows = rows.grid_rows();
  args.widths = rows.widths().data();
  args.outputs = outputs.blocks();
  args.matrix = static_cast<const double*>(weights.data());
  args.matrix_rows = weights.size(0);
  args.matrix_columns = weights.size(1);
  args.row_offset = nullptr;
  if (!row_offset.is_none()) {
    const TensorView offset(row_offset);
    if (offset.dims() != 1 || offset.size(0) != args.matrix_columns) throw_unless_ok("mix", Status::kBadShape);
    if (offset.dtype() != DType::kFloat64) throw_unless_ok("mix", Status::kBadDtype);
    args.row_offset = static_cast<const double*>(offset.data());
  }
  args.centre_columns = centre_columns;
  args.threads = 1;
  return args;
}

}  // namespace

void register_mix(py::module_& m) {
  m.def(
      "mix",
      [](const py::list& blocks, std::int64_t segments, bool stacked, py::handle matrix, py::handle row_offset,
         bool centre_columns, const py::list& outputs, int threads) {
        const RowGrid rows(blocks, segments, stacked), results(outputs, segments, true);
        MixArgs args = mix_args(rows, results, matrix, row_offset, centre_columns);
        args.threads = threads;
        py::gil_scoped_release release;
        throw_unless_ok("mix", mix_cpu(args));
      },
      py::arg("blocks"), py::arg("segments"), py::arg("stacked"), py::arg("matrix"), py::arg("row_offset").none(true),
      py::arg("centre_columns"), py::arg("outputs"), py::arg("threads"));

#if defined(MMFL_HAVE_CUDA)
  m.def(
      "mix_cuda",
      [](const py::list& blocks, std::int64_t segments, bool stacked, py::handle matrix, py::handle row_offset,
         bool centre_columns, const py::list& outputs, int device, std::uintptr_t stream,
         const py::function& allocate) {
        const RowGrid rows(blocks, segments, stacked), results(outputs, segments, true);
        const MixArgs args = mix_args(rows, results, matrix, row_offset, centre_columns);
        MixPlan plan;
        throw_unless_ok("mix", plan_mix(args, plan));
        const CudaPlace place(device, stream, allocate, plan.workspace_bytes);
        py::gil_scoped_release release;
        throw_unless_ok("mix", mix_cuda(args, place.call()));
      },
      py::arg("blocks"), py::arg("segments"), py::arg("stacked"), py::arg("matrix"), py::arg("row_offset").none(true),
      py::arg("centre_columns"), py::arg("outputs"), py::arg("device"), py::arg("stream"),
      py::arg("allocate"));
#endif
}

}  // namespace mmfl
