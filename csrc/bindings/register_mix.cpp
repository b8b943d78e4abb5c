#include <vector>

#include "algebra/algebra.h"
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

MixArgs mix_args(const RowGrid& rows, const RowGrid& outputs, bool centre_columns) {
  if (outputs.grid_rows() != 1 || outputs.widths() != rows.widths())
    throw_unless_ok("mix", Status::kBadShape);
  MixArgs args;
  args.segments = static_cast<std::int64_t>(rows.widths().size());
  args.blocks = rows.blocks();
  args.grid_rows = rows.grid_rows();
  args.widths = rows.widths().data();
  args.outputs = outputs.blocks();
  args.row_offset = nullptr;
  args.centre_columns = centre_columns;
  args.threads = 1;
  return args;
}

// Both contiguous; there may be no row offset.
void set_weights(MixArgs& args, py::handle matrix, py::handle row_offset) {
  const TensorView weights(matrix);
  if (weights.dims() != 2) throw_unless_ok("mix", Status::kBadShape);
  if (weights.dtype() != DType::kFloat64) throw_unless_ok("mix", Status::kBadDtype);
  args.matrix = static_cast<const double*>(weights.data());
  args.matrix_rows = weights.size(0);
  args.matrix_columns = weights.size(1);
  if (row_offset.is_none()) return;
  const TensorView offset(row_offset);
  if (offset.dims() != 1 || offset.size(0) != args.matrix_columns) throw_unless_ok("mix", Status::kBadShape);
  if (offset.dtype() != DType::kFloat64) throw_unless_ok("mix", Status::kBadDtype);
  args.row_offset = static_cast<const double*>(offset.data());
}

// Of a vector of float32 or float64.
std::vector<double> values_of(py::handle vector) {
  const TensorView view(vector);
  if (view.dims() != 1) throw_unless_ok("mix", Status::kBadShape);
  std::vector<double> values(view.size(0));
  const std::int64_t stride = view.stride(0);
  for (std::size_t k = 0; k < values.size(); ++k) {
    const std::int64_t at = static_cast<std::int64_t>(k) * stride;
    if (view.dtype() == DType::kFloat64)
      values[k] = static_cast<const double*>(view.data())[at];
    else if (view.dtype() == DType::kFloat32)
      values[k] = static_cast<const float*>(view.data())[at];
    else
      throw_unless_ok("mix", Status::kBadDtype);
  }
  return values;
}

}  // namespace

void register_mix(py::module_& m) {
  m.def(
      "mix",
      [](const py::list& blocks, std::int64_t segments, bool stacked, py::handle matrix,
         py::handle row_offset, bool centre_columns, const py::list& outputs, int threads) {
        const RowGrid rows(blocks, segments, stacked), results(outputs, segments, true);
        MixArgs args = mix_args(rows, results, centre_columns);
        set_weights(args, matrix, row_offset);
        args.threads = threads;
        py::gil_scoped_release release;
        throw_unless_ok("mix", mix_cpu(args));
      },
      py::arg("blocks"), py::arg("segments"), py::arg("stacked"), py::arg("matrix"),
      py::arg("row_offset").none(true), py::arg("centre_columns"), py::arg("outputs"), py::arg("threads"));

  m.def(
      "weighted_mean",
      [](const py::list& blocks, std::int64_t segments, bool stacked, py::handle weights,
         const py::list& outputs, int threads) {
        std::vector<double> shares = values_of(weights);
        if (!algebra::shares(static_cast<std::int64_t>(shares.size()), shares.data())) return false;
        const RowGrid rows(blocks, segments, stacked), results(outputs, segments, false);
        MixArgs args = mix_args(rows, results, false);
        args.matrix = shares.data();
        args.matrix_rows = 1;
        args.matrix_columns = static_cast<std::int64_t>(shares.size());
        args.threads = threads;
        py::gil_scoped_release release;
        throw_unless_ok("weighted_mean", mix_cpu(args));
        return true;
      },
      py::arg("blocks"), py::arg("segments"), py::arg("stacked"), py::arg("weights"), py::arg("outputs"),
      py::arg("threads"));

#if defined(MMFL_HAVE_CUDA)
  m.def(
      "mix_cuda",
      [](const py::list& blocks, std::int64_t segments, bool stacked, py::handle matrix,
         py::handle row_offset, bool centre_columns, const py::list& outputs, int device,
         std::uintptr_t stream, const py::function& allocate) {
        const RowGrid rows(blocks, segments, stacked), results(outputs, segments, true);
        MixArgs args = mix_args(rows, results, centre_columns);
        set_weights(args, matrix, row_offset);
        MixPlan plan;
        throw_unless_ok("mix", plan_mix(args, plan));
        const CudaPlace place(device, stream, allocate, plan.workspace_bytes);
        py::gil_scoped_release release;
        throw_unless_ok("mix", mix_cuda(args, place.call()));
      },
      py::arg("blocks"), py::arg("segments"), py::arg("stacked"), py::arg("matrix"),
      py::arg("row_offset").none(true), py::arg("centre_columns"), py::arg("outputs"), py::arg("device"),
      py::arg("stream"), py::arg("allocate"));
#endif
}

}  // namespace mmfl
