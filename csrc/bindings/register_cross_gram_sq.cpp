#include "bindings/registration.h"
#include "bindings/tables.h"
#include "cross_gram_sq/cross_gram_sq.h"
#if defined(MMFL_HAVE_CUDA)
#include "cross_gram_sq/cross_gram_sq_cuda.h"
#include "cross_gram_sq/cross_gram_sq_plan.h"
#endif

namespace py = pybind11;

namespace mmfl {
namespace {

CrossGramSqArgs arguments(const Int64Array& blocks, std::int64_t batch, std::int64_t rows, std::int64_t dtype,
                          bool mean_columns, bool normalise_rows, bool tf32, std::uintptr_t out) {
  constexpr std::int64_t kFields = sizeof(ViewBlock) / sizeof(std::int64_t);
  if (blocks.size() % kFields != 0) throw_unless_ok("cross_gram_sq", Status::kBadShape);
  CrossGramSqArgs args;
  args.blocks = reinterpret_cast<const ViewBlock*>(blocks.data());
  args.count = blocks.size() / kFields;
  args.batch = batch;
  args.rows = rows;
  args.dtype = static_cast<DType>(dtype);
  args.mean_columns = mean_columns;
  args.normalise_rows = normalise_rows;
  args.out = reinterpret_cast<double*>(out);
  args.threads = 1;
  args.tf32 = tf32;
  return args;
}

}  // namespace

void register_cross_gram_sq(py::module_& m) {
  m.def(
      "cross_gram_sq",
      [](const Int64Array& blocks, std::int64_t batch, std::int64_t rows, std::int64_t dtype,
         bool mean_columns, bool normalise_rows, std::uintptr_t out, int threads) {
        CrossGramSqArgs args =
            arguments(blocks, batch, rows, dtype, mean_columns, normalise_rows, false, out);
        args.threads = threads;
        py::gil_scoped_release release;
        throw_unless_ok("cross_gram_sq", cross_gram_sq_cpu(args));
      },
      py::arg("blocks"), py::arg("batch"), py::arg("rows"), py::arg("dtype"), py::arg("mean_columns"),
      py::arg("normalise_rows"), py::arg("out"), py::arg("threads"));

#if defined(MMFL_HAVE_CUDA)
  m.def(
      "cross_gram_sq_cuda_workspace",
      [](const Int64Array& blocks, std::int64_t batch, std::int64_t rows, std::int64_t dtype,
         bool mean_columns, bool normalise_rows, bool tf32) {
        CrossGramSqPlan plan;
        throw_unless_ok("cross_gram_sq", plan_cross_gram_sq(arguments(blocks, batch, rows, dtype,
                                                                      mean_columns, normalise_rows, tf32, 0),
                                                            plan));
        return plan.workspace_bytes;
      },
      py::arg("blocks"), py::arg("batch"), py::arg("rows"), py::arg("dtype"), py::arg("mean_columns"),
      py::arg("normalise_rows"), py::arg("tf32"));
  m.def(
      "cross_gram_sq_cuda",
      [](const Int64Array& blocks, std::int64_t batch, std::int64_t rows, std::int64_t dtype,
         bool mean_columns, bool normalise_rows, bool tf32, std::uintptr_t out, int device,
         std::uintptr_t stream, std::uintptr_t workspace, std::int64_t workspace_bytes) {
        const CrossGramSqArgs args =
            arguments(blocks, batch, rows, dtype, mean_columns, normalise_rows, tf32, out);
        const CudaCall call{device, reinterpret_cast<void*>(stream), reinterpret_cast<void*>(workspace),
                            workspace_bytes};
        py::gil_scoped_release release;
        throw_unless_ok("cross_gram_sq", cross_gram_sq_cuda(args, call));
      },
      py::arg("blocks"), py::arg("batch"), py::arg("rows"), py::arg("dtype"), py::arg("mean_columns"),
      py::arg("normalise_rows"), py::arg("tf32"), py::arg("out"), py::arg("device"), py::arg("stream"),
      py::arg("workspace"), py::arg("workspace_bytes"));
#endif
}

}  // namespace mmfl
