#include "bind.hpp"

PYBIND11_MODULE(_core, m) {
  m.doc() =
      "Obverse's native core: graphs and samplers, tries and constraints, near-duplicates, weighted "
      "cross-entropy.";
  obverse::python::bind_errors(m);
  obverse::python::bind_graph(m);
  obverse::python::bind_int8_encoder(m);
  obverse::python::bind_minhash(m);
  obverse::python::bind_duplicates(m);
  obverse::python::bind_ngrams(m);
  obverse::python::bind_symmetric_eigen(m);
  obverse::python::bind_trie(m);
  obverse::python::bind_constraint(m);
  obverse::python::bind_batch(m);
  obverse::python::bind_weighted_ce(m);
  obverse::python::bind_quantised(m);
  obverse::python::bind_exact_join(m);
  obverse::python::bind_threshold_join(m);
  obverse::python::bind_descent(m);
  obverse::python::bind_select(m);
}
