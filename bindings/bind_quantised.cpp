#include "bind.hpp"
#include "obverse/quantised.hpp"
#include "vectors_view.hpp"

namespace obverse::python {
namespace {

VectorRun run_of(int threads, int isa) { return {threads, static_cast<VectorIsa>(isa)}; }

py::tuple norms_of(const py::object& x, int threads, int isa) {
  const Vectors rows = vectors_view(x, "x");
  py::array_t<double> norms(rows.rows);
  double* const data = norms.mutable_data();
  int64_t bad = -1;
  {
    const py::gil_scoped_release release;
    bad = vector_norms(rows, data, run_of(threads, isa));
  }
  return py::make_tuple(std::move(norms), bad);
}

py::tuple quantised(const py::object& x, const py::object& norms, const py::object& matrix, double scale,
                    double defect, const py::object& q, int threads, int isa) {
  const Vectors rows = vectors_view(x, "x");
  const auto lengths = view<double>(norms, "norms");
  require(lengths.size() == static_cast<size_t>(rows.rows), "norms must have one entry a row, ", rows.rows,
          ", got ", lengths.size());
  const py::array basis = checked_array<float>(matrix, "matrix", 2);
  const int64_t width = basis.shape(1);
  require((basis.flags() & py::array::c_style) != 0 && basis.shape(0) == rows.columns && width % 64 == 0 &&
              width >= rows.columns,
          "matrix must be C-contiguous of shape (", rows.columns, ", a multiple of 64), got ",
          shape_text(basis));
  py::array_t<int8_t> out =
      q.is_none() ? py::array_t<int8_t>({rows.rows, width})
                  : py::reinterpret_borrow<py::array_t<int8_t>>(checked_array<int8_t>(q, "q", 2));
  require(out.shape(0) == rows.rows && out.shape(1) == width && (out.flags() & py::array::c_style) != 0,
          "q must be C-contiguous of shape (", rows.rows, ", ", width, "), got ", shape_text(out));
  py::array_t<float> error(rows.rows);
  int8_t* const levels = out.mutable_data();
  float* const bounds = error.mutable_data();
  const Rotation rotation{static_cast<const float*>(basis.data()), rows.columns, width, scale, defect};
  {
    const py::gil_scoped_release release;
    quantise_rows(rows, lengths.data(), rotation, levels, bounds, run_of(threads, isa));
  }
  return py::make_tuple(std::move(out), std::move(error));
}

std::vector<double> sound_norms(const Vectors& x, const char* name, const VectorRun& run) {
  std::vector<double> norms(static_cast<size_t>(x.rows));
  int64_t bad = -1;
  {
    const py::gil_scoped_release release;
    bad = vector_norms(x, norms.data(), run);
  }
  require(bad < 0, name, " must have finite rows that are not all zero, got row ", bad);
  return norms;
}

py::tuple ranked(const py::object& x, const py::object& candidates, int64_t k, const py::object& y,
                 int threads, int isa) {
  const Vectors rows = vectors_view(x, "x"), base = y.is_none() ? rows : vectors_view(y, "y");
  const VectorRun run = run_of(threads, isa);
  require(rows.columns == base.columns && rows.dtype == base.dtype,
          "x and y must have the same number of columns and dtype, got ", rows.columns, " and ", base.columns,
          " columns");
  require(base.rows <= INT32_MAX, "y must have fewer than 2^31 rows, got ", base.rows);
  require(k >= 0, "k must be >= 0, got ", k);
  const py::array given = checked_array<int32_t>(candidates, "indices", 2);
  require(given.shape(0) == rows.rows && (given.flags() & py::array::c_style) != 0,
          "indices must be C-contiguous with one row a vector, ", rows.rows, ", got shape ",
          shape_text(given));
  const std::vector<double> x_norms = sound_norms(rows, "x", run);
  const std::vector<double> y_norms = y.is_none() ? std::vector<double>() : sound_norms(base, "y", run);
  py::array_t<int32_t> indices({rows.rows, k});
  py::array_t<float> similarities({rows.rows, k});
  int32_t* const found = indices.mutable_data();
  float* const values = similarities.mutable_data();
  {
    const py::gil_scoped_release release;
    rank_candidates(rows, x_norms.data(), base, y.is_none() ? x_norms.data() : y_norms.data(),
                    static_cast<const int32_t*>(given.data()), given.shape(1), y.is_none(), k, found, values,
                    run);
  }
  return py::make_tuple(std::move(indices), std::move(similarities));
}

}  // namespace

void bind_quantised(py::module_& m) {
  constexpr int best = static_cast<int>(VectorIsa::kAvx512Vnni);
  m.def("best_vector_isa", [] { return static_cast<int>(best_vector_isa()); });
  m.def("vector_norms", &norms_of, py::arg("x"), py::kw_only(), py::arg("threads") = 1,
        py::arg("isa") = best);
  m.def("quantise_rows", &quantised, py::arg("x"), py::arg("norms"), py::arg("matrix"), py::arg("scale"),
        py::arg("defect"), py::kw_only(), py::arg("q") = py::none(), py::arg("threads") = 1,
        py::arg("isa") = best);
  m.def("rank_candidates", &ranked, py::arg("x"), py::arg("indices"), py::arg("k"), py::kw_only(),
        py::arg("y") = py::none(), py::arg("threads") = 1, py::arg("isa") = best);
}

}  // namespace obverse::python
