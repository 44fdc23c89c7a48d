// numpy arrays in and out of the core: checked views in, adopted vectors out. Nothing is copied or converted.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "obverse/span.hpp"

namespace obverse::python {

namespace py = pybind11;

inline std::string shape_text(const py::array& array) {
  std::string text = "(";
  for (py::ssize_t i = 0; i < array.ndim(); ++i) {
    text += std::to_string(array.shape(i)) + (i + 1 < array.ndim() && array.ndim() > 1 ? ", " : "");
  }
  return text + (array.ndim() == 1 ? ",)" : ")");
}

/// Throws ValueError: what `name` must be, and what was given.
template <typename T>
[[noreturn]] void refuse_array(const char* name, py::ssize_t ndim, const std::string& got) {
  throw ValueError(concat(name, " must be a ", ndim, "-D numpy array of ",
                          py::str(py::object(py::dtype::of<T>())).cast<std::string>(), ", got ", got));
}

/// The object as a numpy array of T in `ndim` dimensions; throws ValueError with expected and got otherwise.
template <typename T>
py::array checked_array(const py::object& object, const char* name, py::ssize_t ndim) {
  if (!py::isinstance<py::array>(object)) {
    refuse_array<T>(name, ndim, py::str(py::type::of(object).attr("__name__")).cast<std::string>());
  }
  auto array = py::reinterpret_borrow<py::array>(object);
  if (!py::isinstance<py::array_t<T, 0>>(object)) {
    refuse_array<T>(name, ndim, "dtype " + py::str(py::object(array.dtype())).cast<std::string>());
  }
  if (array.ndim() != ndim) refuse_array<T>(name, ndim, "shape " + shape_text(array));
  return array;
}

/// A read-only view of a C-contiguous 1-D array.
template <typename T>
span<const T> view(const py::object& object, const char* name) {
  const py::array array = checked_array<T>(object, name, 1);
  require((array.flags() & py::array::c_style) != 0, name, " must be C-contiguous, got strides (",
          array.strides(0), ",) for items of ", array.itemsize(), " bytes");
  return {static_cast<const T*>(array.data()), static_cast<size_t>(array.size())};
}

/// A writable view of a C-contiguous 1-D array.
template <typename T>
span<T> writable_view(const py::object& object, const char* name) {
  const span<const T> data = view<T>(object, name);
  require(py::reinterpret_borrow<py::array>(object).writeable(), name,
          " must be writable, got a read-only array");
  return {const_cast<T*>(data.data()), data.size()};
}

/// As view, or an empty span for None.
template <typename T>
span<const T> optional_view(const py::object& object, const char* name) {
  return object.is_none() ? span<const T>() : view<T>(object, name);
}

/// A C-contiguous 2-D array of `columns` columns, read-only, row-major.
template <typename T>
span<const T> matrix_view(const py::object& object, const char* name, size_t columns) {
  const py::array array = checked_array<T>(object, name, 2);
  require((array.flags() & py::array::c_style) != 0, name,
          " must be C-contiguous, got another layout of shape ", shape_text(array));
  require(static_cast<size_t>(array.shape(1)) == columns, name, " must have shape (n, ", columns, "), got ",
          shape_text(array));
  return {static_cast<const T*>(array.data()), static_cast<size_t>(array.size())};
}

/// Hands a vector to numpy without copying.
template <typename T>
py::array_t<T> adopt(std::vector<T> values) {
  auto owned = std::make_unique<std::vector<T>>(std::move(values));
  std::vector<T>* const raw = owned.get();
  py::capsule keeper(raw, [](void* p) { delete static_cast<std::vector<T>*>(p); });
  owned.release();
  return py::array_t<T>(static_cast<py::ssize_t>(raw->size()), raw->data(), keeper);
}

}  // namespace obverse::python
