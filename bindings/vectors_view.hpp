// Matrices of float16 or float32 as the core reads them.
#pragma once

#include <string>

#include "array_view.hpp"
#include "obverse/quantised.hpp"

namespace obverse::python {

/// A read-only view of a C-contiguous 2-D array of float16 or float32; throws ValueError with expected and got.
inline Vectors vectors_view(const py::object& object, const char* name) {
  const auto refuse = [name](const std::string& got) {
    throw ValueError(
        concat(name, " must be a C-contiguous 2-D numpy array of float16 or float32, got ", got));
  };
  if (!py::isinstance<py::array>(object)) {
    refuse(py::str(py::type::of(object).attr("__name__")).cast<std::string>());
  }
  const auto array = py::reinterpret_borrow<py::array>(object);
  const bool native = array.dtype().byteorder() == '=' || array.dtype().byteorder() == '|';
  const bool half = array.dtype().kind() == 'f' && array.itemsize() == 2;
  const bool single = array.dtype().kind() == 'f' && array.itemsize() == 4;
  if (!native || !(half || single)) {
    refuse("dtype " + py::str(py::object(array.dtype())).cast<std::string>());
  }
  if (array.ndim() != 2) refuse("shape " + shape_text(array));
  if ((array.flags() & py::array::c_style) == 0) refuse("another layout of shape " + shape_text(array));
  return {array.data(), half ? VectorDtype::kFloat16 : VectorDtype::kFloat32, array.shape(0), array.shape(1)};
}

}  // namespace obverse::python
