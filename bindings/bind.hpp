// One function a topic; module.cpp calls them all.
#pragma once

#include <pybind11/pybind11.h>

namespace obverse::python {

void bind_errors(pybind11::module_& m);
void bind_duplicates(pybind11::module_& m);
void bind_select(pybind11::module_& m);
void bind_batch(pybind11::module_& m);
void bind_constraint(pybind11::module_& m);
void bind_descent(pybind11::module_& m);
void bind_exact_join(pybind11::module_& m);
void bind_graph(pybind11::module_& m);
void bind_int8_encoder(pybind11::module_& m);
void bind_minhash(pybind11::module_& m);
void bind_quantised(pybind11::module_& m);
void bind_ngrams(pybind11::module_& m);
void bind_symmetric_eigen(pybind11::module_& m);
void bind_threshold_join(pybind11::module_& m);
void bind_trie(pybind11::module_& m);
void bind_weighted_ce(pybind11::module_& m);

}  // namespace obverse::python
