#include <vector>

#include "bindings/registration.h"
#include "bindings/tensor_view.h"
#include "cross_gram_sq/cross_gram_sq.h"
#if defined(MMFL_HAVE_CUDA)
#include "bindings/cuda_place.h"
#include "cross_gram_sq/cross_gram_sq_cuda.h"
#include "cross_gram_sq/cross_gram_sq_plan.h"
#endif

namespace py = pybind11;

namespace mmfl {
namespace {

// Tensors [B, k, n, d] of one dtype, or [k, n, d] for B = 1; B, n and the dtype go to `args`.
std::vector<ViewBlock> view_blocks(const py::list& tensors, CrossGramSqArgs& args) {
  std::vector<ViewBlock> blocks;
  blocks.reserve(tensors.size());
  for (const py::handle tensor : tensors) {
    const TensorView view(tensor);
    const bool batched = view.dims() == 4;
    if (!batched && view.dims() != 3) throw_unless_ok("cross_gram_sq", Status::kBadShape);
    const std::int64_t batch = batched ? view.size(0) : 1;
    if (blocks.empty()) {
      args.batch = batch;
      args.rows = view.size(-2);
      args.dtype = view.dtype();
    }
    if (batch != args.batch || view.size(-2) != args.rows)
      throw_unless_ok("cross_gram_sq", Status::kBadShape);
    if (view.dtype() != args.dtype) throw_unless_ok("cross_gram_sq", Status::kBadDtype);
    blocks.push_back({view.data(), batched ? view.stride(0) : 0, view.size(-3), view.stride(-3),
                      view.stride(-2), view.stride(-1), view.size(-1)});
  }
  if (blocks.empty()) throw_unless_ok("cross_gram_sq", Status::kBadShape);
  args.blocks = blocks.data();
  args.count = static_cast<std::int64_t>(blocks.size());
  return blocks;
}

void set_options(CrossGramSqArgs& args, bool mean_columns, bool normalise_rows, bool tf32, py::handle out) {
  args.mean_columns = mean_columns;
  args.normalise_rows = normalise_rows;
  args.tf32 = tf32;
  args.out = static_cast<double*>(TensorView(out).data());
  args.threads = 1;
}

}  // namespace

void register_cross_gram_sq(py::module_& m) {
  m.def(
      "cross_gram_sq",
      [](const py::list& blocks, bool mean_columns, bool normalise_rows, py::handle out, int threads) {
        CrossGramSqArgs args;
        const std::vector<ViewBlock> views = view_blocks(blocks, args);
        set_options(args, mean_columns, normalise_rows, false, out);
        args.threads = threads;
        py::gil_scoped_release release;
        throw_unless_ok("cross_gram_sq", cross_gram_sq_cpu(args));
      },
      py::arg("blocks"), py::arg("mean_columns"), py::arg("normalise_rows"), py::arg("out"),
      py::arg("threads"));

#if defined(MMFL_HAVE_CUDA)
  m.def(
      "cross_gram_sq_cuda",
      [](const py::list& blocks, bool mean_columns, bool normalise_rows, bool tf32, py::handle out,
         int device, std::uintptr_t stream, const py::function& allocate) {
        CrossGramSqArgs args;
        const std::vector<ViewBlock> views = view_blocks(blocks, args);
        set_options(args, mean_columns, normalise_rows, tf32, out);
        CrossGramSqPlan plan;
        throw_unless_ok("cross_gram_sq", plan_cross_gram_sq(args, plan));
        const CudaPlace place(device, stream, allocate, plan.workspace_bytes);
        py::gil_scoped_release release;
        throw_unless_ok("cross_gram_sq", cross_gram_sq_cuda(args, place.call()));
      },
      py::arg("blocks"), py::arg("mean_columns"), py::arg("normalise_rows"), py::arg("tf32"), py::arg("out"),
      py::arg("device"), py::arg("stream"), py::arg("allocate"));
#endif
}

}  // namespace mmfl
