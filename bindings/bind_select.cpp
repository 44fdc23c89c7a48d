#include "array_view.hpp"
#include "bind.hpp"
#include "obverse/graph_select.hpp"
#include "obverse/k_center.hpp"
#include "vectors_view.hpp"

namespace obverse::python {
namespace {

template <typename Index>
std::shared_ptr<NeighbourGraph> graph_of(const py::array& indices, const py::object& similarities) {
  const auto values = matrix_view<float>(similarities, "similarities", static_cast<size_t>(indices.shape(1)));
  const span<const Index> rows(static_cast<const Index*>(indices.data()),
                               static_cast<size_t>(indices.size()));
  const int64_t n = indices.shape(0), k = indices.shape(1);
  const py::gil_scoped_release release;
  return std::make_shared<NeighbourGraph>(rows, values, n, k);
}

std::shared_ptr<NeighbourGraph> make_graph(const py::object& indices, const py::object& similarities) {
  const bool narrow = py::isinstance<py::array_t<int32_t, 0>>(indices);
  const py::array rows =
      narrow ? checked_array<int32_t>(indices, "indices", 2) : checked_array<int64_t>(indices, "indices", 2);
  require((rows.flags() & py::array::c_style) != 0,
          "indices must be C-contiguous, got another layout of shape ", shape_text(rows));
  return narrow ? graph_of<int32_t>(rows, similarities) : graph_of<int64_t>(rows, similarities);
}

template <typename Value, typename Chooser>
py::tuple choose(Chooser& chooser, int64_t count) {
  require(count >= 0, "count must be >= 0, got ", count);
  std::vector<int64_t> rows;
  std::vector<Value> values;
  {
    const py::gil_scoped_release release;
    chooser.choose(count, &rows, &values);
  }
  return py::make_tuple(adopt(std::move(rows)), adopt(std::move(values)));
}

std::unique_ptr<FacilityLocation> make_location(const NeighbourGraph& graph, const py::object& weight,
                                                const py::object& quality) {
  const auto weights = optional_view<double>(weight, "weight");
  const auto qualities = optional_view<double>(quality, "quality");
  const py::gil_scoped_release release;
  return std::make_unique<FacilityLocation>(graph, weights, qualities);
}

std::unique_ptr<VectorCenters> make_centers(const py::object& x, int64_t first, int threads, int isa) {
  const Vectors rows = vectors_view(x, "x");
  const py::gil_scoped_release release;
  return std::make_unique<VectorCenters>(rows, first, VectorRun{threads, static_cast<VectorIsa>(isa)});
}

}  // namespace

void bind_select(py::module_& m) {
  py::class_<NeighbourGraph, std::shared_ptr<NeighbourGraph>>(
      m, "NeighbourGraph", "Rows joined where either lists the other; immutable.")
      .def(py::init(&make_graph), py::arg("indices"), py::arg("similarities"))
      .def("__len__", &NeighbourGraph::size)
      .def_property_readonly("num_edges", &NeighbourGraph::num_edges)
      .def_property_readonly("nbytes", &NeighbourGraph::nbytes);

  py::class_<FacilityLocation>(m, "FacilityLocation", "Lazy greedy facility location; not thread-safe.")
      .def(py::init(&make_location), py::arg("graph"), py::kw_only(), py::arg("weight") = py::none(),
           py::arg("quality") = py::none(), py::keep_alive<1, 2>())
      .def("choose", &choose<double, FacilityLocation>, py::arg("count"),
           "Up to `count` more rows, and their gains.")
      .def_property_readonly("num_evaluated", &FacilityLocation::num_evaluated)
      .def_property_readonly("total", &FacilityLocation::total);

  py::class_<GraphCenters>(m, "GraphCenters", "Farthest-first traversal of a graph; not thread-safe.")
      .def(py::init<const NeighbourGraph&, int64_t>(), py::arg("graph"), py::arg("first") = 0,
           py::keep_alive<1, 2>())
      .def("choose", &choose<double, GraphCenters>, py::arg("count"),
           "Up to `count` more rows, and their distances.")
      .def_property_readonly("radius", &GraphCenters::radius);

  py::class_<VectorCenters>(m, "VectorCenters", "Farthest-first traversal of vectors; not thread-safe.")
      .def(py::init(&make_centers), py::arg("x"), py::kw_only(), py::arg("first") = 0, py::arg("threads") = 1,
           py::arg("isa") = 2, py::keep_alive<1, 2>())
      .def("choose", &choose<float, VectorCenters>, py::arg("count"),
           "Up to `count` more rows, and the cosine of each to its nearest row before.")
      .def_property_readonly("least_similarity", &VectorCenters::least_similarity);
}

}  // namespace obverse::python
