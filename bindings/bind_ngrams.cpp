#include "array_view.hpp"
#include "bind.hpp"
#include "obverse/ngrams.hpp"
#include "text_views.hpp"

namespace obverse::python {
namespace {

void add(WordTexts& self, const py::list& texts) {
  const TextViews kept(texts);
  const py::gil_scoped_release release;
  self.add(kept.views());
}

py::array_t<int64_t> lengths(const WordTexts& self) {
  std::vector<int64_t> result(self.size());
  for (size_t i = 0; i < result.size(); ++i) result[i] = self.offsets()[i + 1] - self.offsets()[i];
  return adopt(std::move(result));
}

py::list count(const WordTexts& self, int64_t max_order, bool with_matches, int threads,
               int64_t partition_rows) {
  std::vector<NgramCounts> counts;
  {
    const py::gil_scoped_release release;
    counts = count_ngrams(self, max_order, with_matches, threads, partition_rows);
  }
  py::list result;
  for (NgramCounts& one : counts) {
    py::object matches = py::none();
    if (with_matches) matches = adopt(std::move(one.matches));
    result.append(py::make_tuple(one.total, one.distinct, matches));
  }
  return result;
}

}  // namespace

void bind_ngrams(py::module_& m) {
  py::class_<WordTexts>(m, "WordTexts", "Texts as rows of word numbers; not thread-safe while it grows.")
      .def(py::init<>())
      .def("add", &add, py::arg("texts"),
           "Appends texts: ASCII ones as they are, others as words with spaces between.")
      .def("lengths", &lengths, "Words of each text, int64 [n].")
      .def("count_ngrams", &count, py::arg("max_order"), py::arg("with_matches"), py::arg("threads"),
           py::arg("partition_rows") = int64_t{1} << 24,
           "For each order from 1 up: n-grams, different n-grams, and clipped matches uint32 [n] or None.")
      .def("__len__", &WordTexts::size)
      .def_property_readonly("num_words", &WordTexts::num_words)
      .def_property_readonly("nbytes", &WordTexts::nbytes);
}

}  // namespace obverse::python
