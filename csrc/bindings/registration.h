#pragma once

#include <pybind11/pybind11.h>

#include <new>
#include <stdexcept>
#include <string>

#include "common/status.h"

namespace mmfl {

void register_gram(pybind11::module_& m);
void register_mix(pybind11::module_& m);
void register_cross_gram_sq(pybind11::module_& m);
void register_prototype_loss(pybind11::module_& m);
void register_algebra(pybind11::module_& m);
void register_client_step(pybind11::module_& m);
void register_threads(pybind11::module_& m);

inline void throw_unless_ok(const char* kernel, Status status) {
  if (status == Status::kOk) return;
  if (status == Status::kOutOfMemory) throw std::bad_alloc();
  if (status == Status::kBadLabel) throw std::out_of_range(std::string(kernel) + ": " + describe(status));
  throw std::runtime_error(std::string(kernel) + ": " + describe(status));
}

}  // namespace mmfl
