#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <vector>

#include "bindings/dlpack.h"
#include "common/dtype.h"

namespace mmfl {

// Tensors are read through torch's table from now on, or through their Python attributes, at ten times the
// cost, if this is no such capsule.
void set_exchange(const pybind11::object& capsule);

// A torch tensor as kernels see it. Memory, shape and strides belong to the tensor, which has to outlive
// this. Nothing is checked: neither the device nor whether torch would have to negate the values first.
class TensorView {
 public:
  explicit TensorView(pybind11::handle tensor);
  TensorView(const TensorView&) = delete;
  TensorView& operator=(const TensorView&) = delete;

  void* data() const { return view_.data; }
  std::int64_t dims() const { return view_.dims; }
  // A negative axis counts from the last one.
  std::int64_t size(std::int64_t axis) const { return view_.shape[axis < 0 ? axis + dims() : axis]; }
  std::int64_t stride(std::int64_t axis) const { return view_.strides[axis < 0 ? axis + dims() : axis]; }
  // One that is_known refuses if it is none of the four.
  DType dtype() const;
  bool has(dlpack::TypeCode code, int bits) const;
  // Only between tensors that were read through the table: attributes leave out the device.
  bool on_device_of(const TensorView& other) const;
  bool has_form_of(const TensorView& other) const;

 private:
  void read_attributes(pybind11::handle tensor);

  dlpack::Tensor view_;
  std::vector<std::int64_t> axes_;
};

// Whether tensors [lines, segments] are of these Python types, on one device, and in each line of the shapes
// and dtypes of the first. False also where that cannot be told: without torch's table, or for tensors that
// it does not describe.
bool alike(const pybind11::list& tensors, std::int64_t segments, const pybind11::tuple& types);

}  // namespace mmfl
