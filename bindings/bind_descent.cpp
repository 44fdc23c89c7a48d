#include <limits>

#include "array_view.hpp"
#include "bind.hpp"
#include "obverse/descent.hpp"

namespace obverse::python {
namespace {

/// The rows are kept alive for as long as the graph reads them.
struct HeldDescent {
  py::object q;
  int64_t n;
  Descent graph;
};

std::unique_ptr<HeldDescent> make(const py::object& q, int degree, int leaf, int fanout, int carvings,
                                  double settled, int reverse, int rounds, double delta, uint64_t seed,
                                  int threads, int isa) {
  const py::array rows = checked_array<int8_t>(q, "q", 2);
  require((rows.flags() & py::array::c_style) != 0, "q must be C-contiguous, got another layout of shape ",
          shape_text(rows));
  require(rows.shape(1) <= std::numeric_limits<int32_t>::max(), "q has too many columns: ", rows.shape(1));
  DescentSettings settings;
  settings.degree = degree;
  settings.leaf = leaf;
  settings.fanout = fanout;
  settings.carvings = carvings;
  settings.settled = settled;
  settings.reverse = reverse;
  settings.rounds = rounds;
  settings.delta = delta;
  settings.seed = seed;
  settings.threads = threads;
  settings.isa = static_cast<VectorIsa>(isa);
  const span<const int8_t> data(static_cast<const int8_t*>(rows.data()), static_cast<size_t>(rows.size()));
  const int64_t n = rows.shape(0);
  const auto width = static_cast<int32_t>(rows.shape(1));
  const py::gil_scoped_release release;
  return std::unique_ptr<HeldDescent>(new HeldDescent{rows, n, {data, n, width, settings}});
}

py::tuple step(HeldDescent& held) {
  DescentProgress now;
  {
    const py::gil_scoped_release release;
    now = held.graph.step();
  }
  if (held.graph.done()) held.q = py::none();
  return py::make_tuple(now.part, now.number, now.fraction, now.evaluated, now.updates);
}

py::array_t<int32_t> candidates(const HeldDescent& held, int m) {
  require(m >= 0, "m must be >= 0, got ", m);
  py::array_t<int32_t> out({static_cast<py::ssize_t>(held.n), static_cast<py::ssize_t>(m)});
  const span<int32_t> places(out.mutable_data(), static_cast<size_t>(out.size()));
  {
    const py::gil_scoped_release release;
    held.graph.candidates(m, places);
  }
  return out;
}

}  // namespace

void bind_descent(py::module_& m) {
  py::class_<HeldDescent>(m, "Descent",
                          "An approximate nearest-neighbour graph of int8 rows; not thread-safe.")
      .def(py::init(&make), py::arg("q"), py::kw_only(), py::arg("degree"), py::arg("leaf"),
           py::arg("fanout"), py::arg("carvings"), py::arg("settled"), py::arg("reverse"), py::arg("rounds"),
           py::arg("delta"), py::arg("seed"), py::arg("threads") = 1,
           py::arg("isa") = static_cast<int>(VectorIsa::kAvx512Vnni))
      .def("step", &step, "A piece of the work: (part, number, share done, evaluated, updates).")
      .def("candidates", &candidates, py::arg("m"),
           "The best m found so far: int32 [N, m], -1 where there are fewer.")
      .def_property_readonly("distinct", [](const HeldDescent& held) { return held.graph.distinct(); })
      .def_property_readonly("nbytes", [](const HeldDescent& held) { return held.graph.nbytes(); });
}

}  // namespace obverse::python
