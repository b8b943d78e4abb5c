#include "bindings/row_grid.h"

#include "bindings/registration.h"
#include "bindings/tensor_view.h"

namespace py = pybind11;

namespace mmfl {
namespace {

std::int64_t elements(const TensorView& tensor, std::int64_t first_axis) {
  std::int64_t count = 1;
  for (std::int64_t axis = first_axis; axis < tensor.dims(); ++axis) count *= tensor.size(axis);
  return count;
}

// The one stride between consecutive elements of the axes from `first_axis` on; false if there is none.
bool inner_stride(const TensorView& tensor, std::int64_t first_axis, std::int64_t& stride) {
  stride = 1;
  std::int64_t expected = 0;
  bool found = false;
  for (std::int64_t axis = tensor.dims() - 1; axis >= first_axis; --axis) {
    if (tensor.size(axis) == 1) continue;
    if (!found) stride = expected = tensor.stride(axis);
    if (tensor.stride(axis) != expected) return false;
    expected *= tensor.size(axis);
    found = true;
  }
  return true;
}

}  // namespace

RowGrid::RowGrid(const py::list& tensors, std::int64_t segments, bool stacked) : stacked_(stacked) {
  const auto count = static_cast<std::int64_t>(tensors.size());
  if (segments < 1 || count % segments != 0) throw_unless_ok("rows", Status::kBadShape);
  grid_rows_ = count / segments;
  blocks_.reserve(count);
  widths_.reserve(segments);
  for (std::int64_t i = 0; i < count; ++i) add(tensors[i], i % segments);
}

void RowGrid::add(py::handle tensor, std::int64_t segment) {
  const TensorView view(tensor);
  const std::int64_t first_axis = stacked_ ? 1 : 0;
  if (view.dims() < first_axis) throw_unless_ok("rows", Status::kBadShape);
  const std::int64_t width = elements(view, first_axis);
  std::int64_t stride = 1;
  if (width > 0 && !inner_stride(view, first_axis, stride)) {
    copies_.push_back(tensor.attr("contiguous")());
    return add(copies_.back(), segment);
  }
  if (segment == static_cast<std::int64_t>(widths_.size())) widths_.push_back(width);
  if (width != widths_[segment]) throw_unless_ok("rows", Status::kBadShape);
  if (stacked_)
    blocks_.push_back({view.data(), view.size(0), view.stride(0), stride, view.dtype()});
  else
    blocks_.push_back({view.data(), 1, 0, stride, view.dtype()});
}

}  // namespace mmfl
