#include "array_view.hpp"
#include "bind.hpp"
#include "obverse/graph.hpp"
#include "obverse/sampler.hpp"

namespace obverse::python {
namespace {

using GraphHandle = std::shared_ptr<Graph>;

GraphHandle make_graph(int64_t num_entities, int64_t num_relations, const py::object& heads,
                       const py::object& predicates, const py::object& tails) {
  const auto h = view<int32_t>(heads, "heads");
  const auto p = view<int32_t>(predicates, "predicates");
  const auto t = view<int32_t>(tails, "tails");
  const py::gil_scoped_release release;
  return std::make_shared<Graph>(num_entities, num_relations, h, p, t);
}

std::unique_ptr<Sampler> make_sampler(const GraphHandle& graph, uint64_t seed, const py::object& size_weights,
                                      int64_t reweight_every, double relation_power, double entity_power,
                                      const py::object& relation_allowed, const py::object& entity_allowed) {
  const auto sizes = view<double>(size_weights, "size_weights");
  const auto relations = optional_view<uint8_t>(relation_allowed, "relation_allowed");
  const auto entities = optional_view<uint8_t>(entity_allowed, "entity_allowed");
  const SamplerOptions options{
      seed, {sizes.begin(), sizes.end()}, reweight_every, relation_power, entity_power};
  const py::gil_scoped_release release;
  return std::make_unique<Sampler>(graph, options, relations, entities);
}

py::tuple draw(Sampler& sampler, int64_t count) {
  SampledSets sets;
  {
    const py::gil_scoped_release release;
    sets = sampler.draw(count);
  }
  return py::make_tuple(adopt(std::move(sets.offsets)), adopt(std::move(sets.heads)),
                        adopt(std::move(sets.predicates)), adopt(std::move(sets.tails)));
}

}  // namespace

void bind_graph(py::module_& m) {
  py::class_<Graph, GraphHandle>(
      m, "Graph", "An immutable labelled multigraph; self loops and repeated triples are left out.")
      .def(py::init(&make_graph), py::arg("num_entities"), py::arg("num_relations"), py::arg("heads"),
           py::arg("predicates"), py::arg("tails"))
      .def_property_readonly("num_entities", &Graph::num_entities)
      .def_property_readonly("num_relations", &Graph::num_relations)
      .def_property_readonly("num_edges", &Graph::num_edges)
      .def_property_readonly("nbytes", &Graph::nbytes);

  py::class_<Sampler>(m, "Sampler", "A stream of connected edge sets with even coverage; not thread-safe.")
      .def(py::init(&make_sampler), py::arg("graph"), py::arg("seed"), py::arg("size_weights"),
           py::arg("reweight_every"), py::arg("relation_power"), py::arg("entity_power"),
           py::arg("relation_allowed") = py::none(), py::arg("entity_allowed") = py::none())
      .def("draw", &draw, py::arg("count"), "The next `count` sets: (offsets, heads, predicates, tails).")
      .def("skip", &Sampler::skip, py::arg("count"), py::call_guard<py::gil_scoped_release>(),
           "Goes on by `count` sets without returning them.")
      .def_property_readonly("position", &Sampler::position);
}

}  // namespace obverse::python
