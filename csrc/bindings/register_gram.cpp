#include "bindings/registration.h"
#include "bindings/row_grid.h"
#include "bindings/tensor_view.h"
#include "gram/gram.h"
#if defined(MMFL_HAVE_CUDA)
#include "bindings/cuda_place.h"
#include "gram/gram_cuda.h"
#include "gram/gram_plan.h"
#endif

namespace py = pybind11;

namespace mmfl {
namespace {

GramArgs gram_args(const RowGrid& rows, const RowGrid& origin, bool mean_origin, bool centre_rows, bool tf32,
                   py::handle gram, py::handle row_mean) {
  if (origin.grid_rows() > 0 && origin.widths() != rows.widths()) throw_unless_ok("gram", Status::kBadShape);
  GramArgs args;
  args.segments = static_cast<std::int64_t>(rows.widths().size());
  args.blocks = rows.blocks();
  args.grid_rows = rows.grid_rows();
  args.widths = rows.widths().data();
  args.origin = origin.grid_rows() > 0 ? origin.blocks() : nullptr;
  args.mean_origin = mean_origin;
  args.centre_rows = centre_rows;
  args.tf32 = tf32;
  args.gram = static_cast<double*>(TensorView(gram).data());
  args.row_mean = static_cast<double*>(TensorView(row_mean).data());
  args.threads = 1;
  return args;
}

}  // namespace

void register_gram(py::module_& m) {
  m.def(
      "gram",
      [](const py::list& blocks, std::int64_t segments, bool stacked, const py::list& origin,
         bool mean_origin, bool centre_rows, py::handle gram, py::handle row_mean, int threads) {
        const RowGrid rows(blocks, segments, stacked), origin_row(origin, segments, false);
        GramArgs args = gram_args(rows, origin_row, mean_origin, centre_rows, false, gram, row_mean);
        args.threads = threads;
        py::gil_scoped_release release;
        throw_unless_ok("gram", gram_cpu(args));
      },
      py::arg("blocks"), py::arg("segments"), py::arg("stacked"), py::arg("origin"), py::arg("mean_origin"),
      py::arg("centre_rows"), py::arg("gram"), py::arg("row_mean"), py::arg("threads"));

#if defined(MMFL_HAVE_CUDA)
  m.def(
      "gram_cuda",
      [](const py::list& blocks, std::int64_t segments, bool stacked, const py::list& origin,
         bool mean_origin, bool centre_rows, bool tf32, py::handle gram, py::handle row_mean, int device,
         std::uintptr_t stream, const py::function& allocate) {
        const RowGrid rows(blocks, segments, stacked), origin_row(origin, segments, false);
        const GramArgs args = gram_args(rows, origin_row, mean_origin, centre_rows, tf32, gram, row_mean);
        GramPlan plan;
        throw_unless_ok("gram", plan_gram(args, plan));
        const CudaPlace place(device, stream, allocate, plan.workspace_bytes);
        py::gil_scoped_release release;
        throw_unless_ok("gram", gram_cuda(args, place.call()));
      },
      py::arg("blocks"), py::arg("segments"), py::arg("stacked"), py::arg("origin"), py::arg("mean_origin"),
      py::arg("centre_rows"), py::arg("tf32"), py::arg("gram"), py::arg("row_mean"), py::arg("device"),
      py::arg("stream"), py::arg("allocate"));
#endif
}

}  // namespace mmfl
