#include <pybind11/pybind11.h>

#include "bind.hpp"
#include "obverse/error.hpp"

namespace obverse::python {

namespace py = pybind11;

/// ValueError and IndexError follow from their standard bases; OSError needs errno and the file's name.
void bind_errors(py::module_& m) {
  (void)m;
  py::register_local_exception_translator([](std::exception_ptr error) {
    try {
      if (error) std::rethrow_exception(error);
    } catch (const IoError& e) {
      // OSError(errno, text, file) picks its own subclass, such as FileNotFoundError.
      const py::tuple args = py::make_tuple(e.code(), e.what(), e.path());
      PyErr_SetObject(PyExc_OSError, args.ptr());
    }
  });
}

}  // namespace obverse::python
