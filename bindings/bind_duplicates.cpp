#include "array_view.hpp"
#include "bind.hpp"
#include "obverse/groups.hpp"
#include "obverse/text_duplicates.hpp"

namespace obverse::python {
namespace {

py::tuple as_tuple(DuplicateGroups groups) {
  return py::make_tuple(adopt(std::move(groups.group)), adopt(std::move(groups.kept)),
                        adopt(std::move(groups.duplicate_of)), adopt(std::move(groups.similarity)));
}

py::array_t<int64_t> equal_rows(const py::object& x, const py::object& order, int threads) {
  require(py::isinstance<py::array>(x), "x must be a 2-D numpy array, got ",
          py::str(py::type::of(x).attr("__name__")).cast<std::string>());
  const auto array = py::reinterpret_borrow<py::array>(x);
  require(array.ndim() == 2 && (array.flags() & py::array::c_style) != 0,
          "x must be a C-contiguous 2-D numpy array, got another layout or shape ", shape_text(array));
  const auto places = optional_view<int64_t>(order, "order");
  const int64_t rows = array.shape(0), row_bytes = array.shape(1) * array.itemsize();
  const span<const uint8_t> bytes(static_cast<const uint8_t*>(array.data()),
                                  static_cast<size_t>(rows * row_bytes));
  std::vector<int64_t> first;
  {
    const py::gil_scoped_release release;
    first = first_equal_rows(bytes, rows, row_bytes, places, threads);
  }
  return adopt(std::move(first));
}

py::tuple grouped(int64_t n, const py::object& i, const py::object& j, const py::object& similarities,
                  const py::object& order, const py::object& first) {
  const RowPairs pairs{view<int64_t>(i, "i"), view<int64_t>(j, "j"),
                       view<float>(similarities, "similarities")};
  const auto places = optional_view<int64_t>(order, "order");
  const auto firsts = optional_view<int64_t>(first, "first");
  DuplicateGroups groups;
  {
    const py::gil_scoped_release release;
    groups = group_pairs(n, pairs, places, firsts);
  }
  return as_tuple(std::move(groups));
}

/// The search with what it looks at.
struct TextSearch {
  py::object bytes, offsets;
  std::unique_ptr<TextDuplicates> search;
};

TextDuplicateOptions options_of(double threshold, int64_t bands, int64_t width, int64_t num_perm,
                                int64_t ngram, uint64_t seed) {
  return {num_perm, ngram, bands, width, threshold, seed};
}

std::unique_ptr<TextSearch> make_search(const py::object& bytes, const py::object& offsets,
                                        const py::object& order, double threshold, int64_t bands,
                                        int64_t width, int64_t num_perm, int64_t ngram, uint64_t seed) {
  const auto raw = view<uint8_t>(bytes, "bytes");
  const span<const char> text(reinterpret_cast<const char*>(raw.data()), raw.size());
  const auto bounds = view<int64_t>(offsets, "offsets");
  const auto places = optional_view<int64_t>(order, "order");
  auto made = std::make_unique<TextSearch>(TextSearch{bytes, offsets, nullptr});
  const py::gil_scoped_release release;
  made->search = std::make_unique<TextDuplicates>(options_of(threshold, bands, width, num_perm, ngram, seed),
                                                  text, bounds, places);
  return made;
}

py::tuple groups_of(const TextSearch& self) {
  DuplicateGroups groups;
  {
    const py::gil_scoped_release release;
    groups = self.search->groups();
  }
  return as_tuple(std::move(groups));
}

}  // namespace

void bind_duplicates(py::module_& m) {
  using Unlocked = py::call_guard<py::gil_scoped_release>;
  m.def("first_equal_rows", &equal_rows, py::arg("x"), py::kw_only(), py::arg("order") = py::none(),
        py::arg("threads") = 1, "For each row of x [N, d] the first row, by `order`, with the same bytes.");
  m.def(
      "group_pairs", &grouped, py::arg("n"), py::arg("i"), py::arg("j"), py::arg("similarities"),
      py::kw_only(), py::arg("order") = py::none(), py::arg("first") = py::none(),
      "Groups, rows that stay, what the others repeat, and how similar they are, from all pairs of n rows.");
  m.def(
      "expected_recall",
      [](double jaccard, double threshold, int64_t bands, int64_t width, int64_t num_perm) {
        return expected_recall(options_of(threshold, bands, width, num_perm, 5, 0), jaccard);
      },
      py::arg("jaccard"), py::kw_only(), py::arg("threshold"), py::arg("bands"), py::arg("width"),
      py::arg("num_perm") = 128,
      "The chance, at least, that a pair of texts of that Jaccard similarity is found.");

  py::class_<TextSearch>(m, "TextDuplicates", "Near-duplicates among all texts of a set; not thread-safe.")
      .def(py::init(&make_search), py::arg("bytes"), py::arg("offsets"), py::kw_only(),
           py::arg("order") = py::none(), py::arg("threshold"), py::arg("bands"), py::arg("width"),
           py::arg("num_perm") = 128, py::arg("ngram") = 5, py::arg("seed") = 0)
      .def(
          "sign", [](TextSearch& s, int64_t a, int64_t b, int threads) { s.search->sign(a, b, threads); },
          py::arg("first"), py::arg("last"), py::arg("threads") = 1, Unlocked(),
          "Signs distinct texts [first, last).")
      .def(
          "gather", [](TextSearch& s, int64_t band) { s.search->gather(band); }, py::arg("band"), Unlocked(),
          "Puts texts that agree in a band together; bands in order.")
      .def(
          "keep", [](TextSearch& s, int64_t a, int64_t b) { s.search->keep(a, b); }, py::arg("first"),
          py::arg("last"), Unlocked(), "Decides which of the distinct texts [first, last) stay; in order.")
      .def(
          "link", [](TextSearch& s, int64_t band) { s.search->link(band); }, py::arg("band"), Unlocked(),
          "Joins what a band still has apart.")
      .def("groups", &groups_of, "As group_pairs.")
      .def_property_readonly("num_distinct", [](const TextSearch& s) { return s.search->num_distinct(); })
      .def_property_readonly("num_compared", [](const TextSearch& s) { return s.search->num_compared(); })
      .def_property_readonly("nbytes", [](const TextSearch& s) { return s.search->nbytes(); });
}

}  // namespace obverse::python
