#include "bindings/tensor_view.h"

#include <algorithm>
#include <atomic>
#include <string_view>

namespace py = pybind11;

namespace mmfl {
namespace {

std::atomic<const dlpack::ExchangeApi*> exchange{nullptr};

struct NamedType {
  std::string_view name;
  dlpack::DataType type;
};

constexpr NamedType kTypes[] = {
    {"torch.float64", {dlpack::kFloat, 64, 1}},   {"torch.float32", {dlpack::kFloat, 32, 1}},
    {"torch.bfloat16", {dlpack::kBfloat, 16, 1}}, {"torch.float16", {dlpack::kFloat, 16, 1}},
    {"torch.int64", {dlpack::kInt, 64, 1}},       {"torch.bool", {dlpack::kBool, 8, 1}},
};

bool is_one_of(const py::tuple& types, py::handle value) {
  return std::any_of(types.begin(), types.end(),
                     [value](py::handle type) { return type.is(py::type::handle_of(value)); });
}

}  // namespace

void set_exchange(const py::object& capsule) {
  exchange = nullptr;
  if (!PyCapsule_IsValid(capsule.ptr(), dlpack::kCapsuleName)) return;
  const auto* header =
      static_cast<const dlpack::ExchangeHeader*>(PyCapsule_GetPointer(capsule.ptr(), dlpack::kCapsuleName));
  while (header != nullptr && header->major > dlpack::kMajorVersion) header = header->older;
  if (header == nullptr || header->major != dlpack::kMajorVersion) return;
  const auto* api = reinterpret_cast<const dlpack::ExchangeApi*>(header);
  if (api->view_from_python != nullptr) exchange = api;
}

TensorView::TensorView(py::handle tensor) {
  const dlpack::ExchangeApi* api = exchange;
  if (api == nullptr)
    read_attributes(tensor);
  else if (api->view_from_python(tensor.ptr(), &view_) != 0)
    throw py::error_already_set();
}

void TensorView::read_attributes(py::handle tensor) {
  const auto shape = py::tuple(tensor.attr("shape"));
  const auto strides = py::tuple(tensor.attr("stride")());
  for (const py::handle size : shape) axes_.push_back(size.cast<std::int64_t>());
  for (const py::handle stride : strides) axes_.push_back(stride.cast<std::int64_t>());
  view_.data = reinterpret_cast<void*>(tensor.attr("data_ptr")().cast<std::uintptr_t>());
  view_.dims = static_cast<std::int32_t>(shape.size());
  view_.shape = axes_.data();
  view_.strides = axes_.data() + shape.size();
  view_.dtype = {};
  const auto name = py::str(tensor.attr("dtype")).cast<std::string>();
  for (const NamedType& known : kTypes)
    if (name == known.name) view_.dtype = known.type;
}

bool TensorView::has(dlpack::TypeCode code, int bits) const {
  return view_.dtype.code == code && view_.dtype.bits == bits && view_.dtype.lanes == 1;
}

bool TensorView::on_device_of(const TensorView& other) const {
  return view_.device_type == other.view_.device_type && view_.device_id == other.view_.device_id;
}

bool TensorView::has_form_of(const TensorView& other) const {
  return has(static_cast<dlpack::TypeCode>(other.view_.dtype.code), other.view_.dtype.bits) &&
         dims() == other.dims() && std::equal(view_.shape, view_.shape + dims(), other.view_.shape);
}

DType TensorView::dtype() const {
  if (has(dlpack::kFloat, 32)) return DType::kFloat32;
  if (has(dlpack::kFloat, 64)) return DType::kFloat64;
  if (has(dlpack::kBfloat, 16)) return DType::kBFloat16;
  if (has(dlpack::kFloat, 16)) return DType::kFloat16;
  return static_cast<DType>(-1);
}

bool alike(const py::list& tensors, std::int64_t segments, const py::tuple& types) {
  if (exchange == nullptr) return false;
  const auto count = static_cast<std::int64_t>(tensors.size());
  try {
    for (std::int64_t s = 0; s < segments; ++s) {
      const TensorView model(tensors[s]), first(tensors[0]);
      if (!model.on_device_of(first)) return false;
      for (std::int64_t at = s; at < count; at += segments) {
        if (!is_one_of(types, tensors[at])) return false;
        const TensorView view(tensors[at]);
        if (!view.has_form_of(model) || !view.on_device_of(model)) return false;
      }
    }
  } catch (const py::error_already_set&) {
    return false;
  }
  return true;
}

}  // namespace mmfl
