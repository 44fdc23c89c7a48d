#include "array_view.hpp"
#include "bind.hpp"
#include "obverse/symmetric_eigen.hpp"

namespace obverse::python {
namespace {

py::array_t<double> eigenvalues(const py::object& matrix) {
  const py::array array = checked_array<double>(matrix, "matrix", 2);
  const auto n = static_cast<size_t>(array.shape(0));
  const span<const double> entries = matrix_view<double>(matrix, "matrix", n);
  std::vector<double> values(entries.begin(), entries.end());
  {
    const py::gil_scoped_release release;
    values = symmetric_eigenvalues(std::move(values), n);
  }
  return adopt(std::move(values));
}

}  // namespace

void bind_symmetric_eigen(py::module_& m) {
  m.def(
      "symmetric_eigenvalues", &eigenvalues, py::arg("matrix"),
      "Eigenvalues of a symmetric float64 matrix [n, n] (its lower triangle), largest first, on one thread.");
}

}  // namespace obverse::python
