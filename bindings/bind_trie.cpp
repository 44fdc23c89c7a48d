#include <string>

#include "array_view.hpp"
#include "bind.hpp"
#include "obverse/trie.hpp"

namespace obverse::python {
namespace {

using TrieHandle = std::shared_ptr<Trie>;

/// pybind11 holds handles to non-const; no method it calls changes a trie.
TrieHandle handle(std::shared_ptr<const Trie> trie) { return std::const_pointer_cast<Trie>(std::move(trie)); }

TrieHandle build(const py::object& tokens, const py::object& offsets) {
  const auto flat = view<int32_t>(tokens, "tokens");
  const auto starts = view<int64_t>(offsets, "offsets");
  const py::gil_scoped_release release;
  return handle(Trie::build(Ragged<int32_t>(flat, starts)));
}

std::string file_name(const py::object& path) {
  return py::module_::import("os").attr("fsencode")(path).cast<std::string>();
}

TrieHandle open(const py::object& path) {
  const std::string name = file_name(path);
  const py::gil_scoped_release release;
  return handle(Trie::open(name));
}

void save(const Trie& trie, const py::object& path) {
  const std::string name = file_name(path);
  const py::gil_scoped_release release;
  trie.save(name);
}

uint32_t checked_node(const Trie& trie, int64_t node) {
  if (node < 0 || static_cast<uint64_t>(node) >= trie.num_nodes()) {
    throw IndexError(concat("node must be in [0, ", trie.num_nodes(), "), got ", node));
  }
  return static_cast<uint32_t>(node);
}

py::array_t<int32_t> children(const Trie& trie, int64_t node) {
  const auto tokens = trie.children(checked_node(trie, node));
  return adopt(std::vector<int32_t>(tokens.begin(), tokens.end()));
}

int64_t step(const Trie& trie, int64_t node, int64_t token) {
  const uint32_t from = checked_node(trie, node);
  if (token < 0 || token > std::numeric_limits<int32_t>::max()) return Trie::kNone;
  return trie.step(from, static_cast<uint32_t>(token));
}

py::array_t<int64_t> sequence_ids(const Trie& trie, int64_t node) {
  const auto ids = trie.sequence_ids(checked_node(trie, node));
  return adopt(std::vector<int64_t>(ids.begin(), ids.end()));
}

}  // namespace

void bind_trie(py::module_& m) {
  py::class_<Trie, TrieHandle>(m, "Trie", "An immutable token trie; thread-safe, the root is node 0.")
      .def_static("build", &build, py::arg("tokens"), py::arg("offsets"),
                  "From sequences end to end: tokens int32, offsets int64 [n + 1].")
      .def_static("open", &open, py::arg("path"), "Maps a file that `save` wrote.")
      .def("save", &save, py::arg("path"), "Writes one file, whole or not at all.")
      .def("children", &children, py::arg("node"), "Tokens of the node's children, ascending.")
      .def("step", &step, py::arg("node"), py::arg("token"), "The child by `token`, or -1.")
      .def(
          "is_terminal",
          [](const Trie& trie, int64_t node) { return trie.is_terminal(checked_node(trie, node)); },
          py::arg("node"), "Whether a sequence ends here.")
      .def("sequence_ids", &sequence_ids, py::arg("node"), "Numbers of the sequences that end here.")
      .def_property_readonly("num_nodes", &Trie::num_nodes)
      .def_property_readonly("num_sequences", &Trie::num_sequences)
      .def_property_readonly("nbytes", &Trie::nbytes);
}

}  // namespace obverse::python
