#include "bind.hpp"

PYBIND11_MODULE(_core, m) {
  m.doc() =
      "Obverse's native core: graphs and samplers, tries and constraints, near-duplicates, weighted "
      "cross-entropy.";
  obverse::python::bind_errors(m);
  obverse::python::bind_graph(m);
  obverse::python::bind_minhash(m);
  obverse::python::bind_trie(m);
  obverse::python::bind_constraint(m);
  obverse::python::bind_batch(m);
  obverse::python::bind_weighted_ce(m);
}
