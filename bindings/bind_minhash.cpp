#include <string_view>
#include <vector>

#include "array_view.hpp"
#include "bind.hpp"
#include "obverse/minhash.hpp"
#include "text_views.hpp"

namespace obverse::python {
namespace {

py::array_t<uint32_t> signatures(const MinHasher& hasher, const py::list& texts) {
  const TextViews held(texts);
  const std::vector<std::string_view>& views = held.views();
  const size_t num_perm = hasher.num_perm();
  py::array_t<uint32_t> out({views.size(), num_perm});
  uint32_t* const data = out.mutable_data();
  {
    const py::gil_scoped_release release;
    for (size_t i = 0; i < views.size(); ++i) {
      hasher.signature(views[i], span<uint32_t>(data + i * num_perm, num_perm));
    }
  }
  return out;
}

py::array_t<int64_t> find(const DuplicateIndex& index, const py::object& signatures) {
  const auto rows = matrix_view<uint32_t>(signatures, "signatures", index.num_perm());
  std::vector<int64_t> found(rows.size() / index.num_perm());
  {
    const py::gil_scoped_release release;
    for (size_t i = 0; i < found.size(); ++i) {
      found[i] = index.find(rows.subspan(i * index.num_perm(), index.num_perm()));
    }
  }
  return adopt(std::move(found));
}

py::array_t<int64_t> insert_or_find(DuplicateIndex& index, const py::object& ids,
                                    const py::object& signatures) {
  const auto rows = matrix_view<uint32_t>(signatures, "signatures", index.num_perm());
  const auto names = view<int64_t>(ids, "ids");
  require(names.size() * index.num_perm() == rows.size(), "ids must have one entry a signature, ",
          rows.size() / index.num_perm(), ", got ", names.size());
  for (size_t i = 0; i < names.size(); ++i) {
    require(names[i] >= 0, "ids[", i, "] must be >= 0 (-1 says that there is none), got ", names[i]);
  }
  std::vector<int64_t> found(names.size());
  {
    const py::gil_scoped_release release;
    for (size_t i = 0; i < found.size(); ++i) {
      found[i] = index.insert_or_find(names[i], rows.subspan(i * index.num_perm(), index.num_perm()));
    }
  }
  return adopt(std::move(found));
}

std::unique_ptr<DuplicateIndex> make_index(const MinHasher& hasher, double threshold) {
  return std::make_unique<DuplicateIndex>(static_cast<int64_t>(hasher.num_perm()),
                                          static_cast<int64_t>(hasher.bands()), threshold);
}

}  // namespace

void bind_minhash(py::module_& m) {
  py::class_<DuplicateIndex>(m, "DuplicateIndex", "Signatures by band; not thread-safe.")
      .def(py::init<int64_t, int64_t, double>(), py::arg("num_perm"), py::arg("bands"), py::arg("threshold"))
      .def("insert_or_find", &insert_or_find, py::arg("ids"), py::arg("signatures"),
           "For each row the id of the first earlier row at or above the threshold, else -1 and it is "
           "inserted.")
      .def("find", &find, py::arg("signatures"), "As insert_or_find, inserting nothing.")
      .def("__len__", &DuplicateIndex::size)
      .def_property_readonly("num_perm", &DuplicateIndex::num_perm)
      .def_property_readonly("bands", &DuplicateIndex::bands)
      .def_property_readonly("threshold", &DuplicateIndex::threshold)
      .def_property_readonly("nbytes", &DuplicateIndex::nbytes);

  py::class_<MinHasher>(m, "MinHasher", "MinHash signatures of character n-grams; immutable and thread-safe.")
      .def(py::init<int64_t, int64_t, int64_t, uint64_t>(), py::arg("num_perm") = 128, py::arg("bands") = 32,
           py::arg("ngram") = 5, py::arg("seed") = 0)
      .def("signatures", &signatures, py::arg("texts"), "One row a text: uint32 [n, num_perm].")
      .def("index", &make_index, py::arg("threshold"), "An empty DuplicateIndex of this shape.")
      .def_property_readonly("num_perm", &MinHasher::num_perm)
      .def_property_readonly("bands", &MinHasher::bands)
      .def_property_readonly("ngram", &MinHasher::ngram);
}

}  // namespace obverse::python
