#include "bindings/registration.h"
#include "bindings/tables.h"
#include "gram/gram.h"
#if defined(MMFL_HAVE_CUDA)
#include "gram/gram_cuda.h"
#include "gram/gram_plan.h"
#endif

namespace py = pybind11;

namespace mmfl {
namespace {

GramArgs gram_args(const Int64Array& blocks, const Int64Array& widths, const Int64Array& origin,
                   bool mean_origin, bool centre_rows, bool tf32, std::uintptr_t gram,
                   std::uintptr_t row_mean) {
  GramArgs args;
  args.segments = widths.size();
  args.blocks = row_blocks(blocks, args.segments, args.grid_rows);
  args.widths = widths.data();
  std::int64_t origins = 0;
  args.origin = row_blocks(origin, args.segments, origins);
  if (origins == 0) args.origin = nullptr;
  args.mean_origin = mean_origin;
  args.centre_rows = centre_rows;
  args.tf32 = tf32;
  args.gram = reinterpret_cast<double*>(gram);
  args.row_mean = reinterpret_cast<double*>(row_mean);
  args.threads = 1;
  return args;
}

}  // namespace

void register_gram(py::module_& m) {
  m.def(
      "gram",
      [](const Int64Array& blocks, const Int64Array& widths, const Int64Array& origin, bool mean_origin,
         bool centre_rows, std::uintptr_t gram, std::uintptr_t row_mean, int threads) {
        GramArgs args = gram_args(blocks, widths, origin, mean_origin, centre_rows, false, gram, row_mean);
        args.threads = threads;
        py::gil_scoped_release release;
        throw_unless_ok("gram", gram_cpu(args));
      },
      py::arg("blocks"), py::arg("widths"), py::arg("origin"), py::arg("mean_origin"), py::arg("centre_rows"),
      py::arg("gram"), py::arg("row_mean"), py::arg("threads"));

#if defined(MMFL_HAVE_CUDA)
  m.def(
      "gram_cuda_workspace",
      [](const Int64Array& blocks, const Int64Array& widths, const Int64Array& origin, bool mean_origin,
         bool centre_rows, bool tf32) {
        GramPlan plan;
        throw_unless_ok(
            "gram", plan_gram(gram_args(blocks, widths, origin, mean_origin, centre_rows, tf32, 0, 0), plan));
        return plan.workspace_bytes;
      },
      py::arg("blocks"), py::arg("widths"), py::arg("origin"), py::arg("mean_origin"), py::arg("centre_rows"),
      py::arg("tf32"));
  m.def(
      "gram_cuda",
      [](const Int64Array& blocks, const Int64Array& widths, const Int64Array& origin, bool mean_origin,
         bool centre_rows, bool tf32, std::uintptr_t gram, std::uintptr_t row_mean, int device,
         std::uintptr_t stream, std::uintptr_t workspace, std::int64_t workspace_bytes) {
        const GramArgs args =
            gram_args(blocks, widths, origin, mean_origin, centre_rows, tf32, gram, row_mean);
        const CudaCall call{device, reinterpret_cast<void*>(stream), reinterpret_cast<void*>(workspace),
                            workspace_bytes};
        py::gil_scoped_release release;
        throw_unless_ok("gram", gram_cuda(args, call));
      },
      py::arg("blocks"), py::arg("widths"), py::arg("origin"), py::arg("mean_origin"), py::arg("centre_rows"),
      py::arg("tf32"), py::arg("gram"), py::arg("row_mean"), py::arg("device"), py::arg("stream"),
      py::arg("workspace"), py::arg("workspace_bytes"));
#endif
}

}  // namespace mmfl
