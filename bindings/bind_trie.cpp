#include <string>

#include "array_view.hpp"
#include "bind.hpp"
#include "obverse/section_file.hpp"
#include "obverse/trie.hpp"

namespace obverse::python {
namespace {

using TrieHandle = std::shared_ptr<Trie>;
using FileHandle = std::shared_ptr<SectionFile>;

constexpr const char* kAlone = "trie";  // the prefix in a file that holds one trie and nothing else

/// pybind11 holds handles to non-const; no method it calls changes a trie.
TrieHandle handle(std::shared_ptr<const Trie> trie) { return std::const_pointer_cast<Trie>(std::move(trie)); }

TrieHandle build(const py::object& tokens, const py::object& offsets, int64_t threads) {
  const auto flat = view<int32_t>(tokens, "tokens");
  const auto starts = view<int64_t>(offsets, "offsets");
  require(threads >= 0 && threads <= 1024, "threads must be in [0, 1024], got ", threads);
  const py::gil_scoped_release release;
  return handle(Trie::build(Ragged<int32_t>(flat, starts), static_cast<unsigned>(threads)));
}

std::string file_name(const py::object& path) {
  return py::module_::import("os").attr("fsencode")(path).cast<std::string>();
}

FileHandle open_file(const py::object& path) {
  const std::string name = file_name(path);
  const py::gil_scoped_release release;
  return std::const_pointer_cast<SectionFile>(SectionFile::open(name));
}

void write_file(const py::object& path, const std::string& fingerprint, const py::dict& contents) {
  const std::string name = file_name(path);
  std::vector<py::buffer_info> held;
  std::vector<Section> sections;
  held.reserve(contents.size());
  for (const auto& [key, value] : contents) {
    held.push_back(py::reinterpret_borrow<py::buffer>(value).request());
    const py::buffer_info& info = held.back();
    py::ssize_t packed = info.itemsize;
    for (py::ssize_t axis = info.ndim; axis-- > 0; packed *= info.shape[static_cast<size_t>(axis)]) {
      require(info.shape[static_cast<size_t>(axis)] <= 1 || info.strides[static_cast<size_t>(axis)] == packed,
              "sections['", py::str(key).cast<std::string>(), "'] must be contiguous, got strides");
    }
    sections.push_back(
        {py::str(key).cast<std::string>(),
         {static_cast<const std::byte*>(info.ptr), static_cast<size_t>(info.size * info.itemsize)}});
  }
  const py::gil_scoped_release release;
  SectionFile::write(name, fingerprint, sections);
}

/// A read-only view of memory that `owner` keeps alive.
template <typename T>
py::array borrowed(const void* data, std::vector<py::ssize_t> shape, const py::object& owner) {
  static const T kNothing{};
  py::array_t<T> array(std::move(shape), data == nullptr ? &kNothing : static_cast<const T*>(data), owner);
  array.attr("setflags")(py::arg("write") = false);
  return array;
}

py::array section_view(const py::object& file, const std::string& name) {
  const auto bytes = file.cast<const SectionFile&>().section(name);
  return borrowed<uint8_t>(bytes.data(), {static_cast<py::ssize_t>(bytes.size())}, file);
}

py::array typed(const Section& section, const std::string& part, const py::object& owner) {
  const auto count = [&](size_t item) { return static_cast<py::ssize_t>(section.bytes.size() / item); };
  if (part == "low") return borrowed<uint16_t>(section.bytes.data(), {count(2)}, owner);
  if (part == "high" || part == "offset") return borrowed<uint8_t>(section.bytes.data(), {count(1)}, owner);
  if (part == "blocks") return borrowed<uint32_t>(section.bytes.data(), {count(16), 4}, owner);
  return borrowed<uint32_t>(section.bytes.data(), {count(4)}, owner);
}

py::dict arrays(const py::object& self, const std::string& prefix) {
  py::dict out;
  const std::string lead = prefix.empty() ? "" : prefix + ".";
  for (const Section& section : self.cast<const Trie&>().sections("")) {
    const std::string part = section.name.substr(1);
    out[py::str(lead + part)] = typed(section, part, self);
  }
  return out;
}

uint32_t checked_node(const Trie& trie, int64_t node) {
  if (node < 0 || static_cast<uint64_t>(node) >= trie.num_nodes()) {
    throw IndexError(concat("node must be in [0, ", trie.num_nodes(), "), got ", node));
  }
  return static_cast<uint32_t>(node);
}

py::array_t<int32_t> children(const Trie& trie, int64_t node) {
  std::vector<int32_t> out;
  trie.children(checked_node(trie, node)).for_each([&](uint32_t t) {
    out.push_back(static_cast<int32_t>(t));
  });
  return adopt(std::move(out));
}

int64_t step(const Trie& trie, int64_t node, int64_t token) {
  const uint32_t from = checked_node(trie, node);
  if (token < 0 || token > Trie::kMaxToken) return Trie::kNone;
  return trie.step(from, static_cast<uint32_t>(token));
}

template <typename T>
py::array_t<int64_t> as_int64(const std::vector<T>& values) {
  return adopt(std::vector<int64_t>(values.begin(), values.end()));
}

py::tuple find(const Trie& trie, const py::object& tokens) {
  const auto sequence = view<int32_t>(tokens, "tokens");
  std::vector<Found> found;
  {
    const py::gil_scoped_release release;
    found = trie.find(sequence);
  }
  std::vector<int64_t> begins, ends, nodes;
  for (const Found& hit : found) {
    begins.push_back(hit.begin);
    ends.push_back(hit.end);
    nodes.push_back(hit.node);
  }
  return py::make_tuple(adopt(std::move(begins)), adopt(std::move(ends)), adopt(std::move(nodes)));
}

void bind_file(py::module_& m) {
  py::class_<SectionFile, FileHandle>(m, "SectionFile", "One file of named byte sections, mapped read-only.")
      .def_static("write", &write_file, py::arg("path"), py::arg("fingerprint"), py::arg("sections"),
                  "Writes {name: buffer} with a checksum each, whole or not at all.")
      .def_static("open", &open_file, py::arg("path"), "Maps a file; reads its header and table only.")
      .def_property_readonly("path", [](const SectionFile& file) { return file.path(); })
      .def_property_readonly("fingerprint", [](const SectionFile& file) { return file.fingerprint(); })
      .def(
          "names", [](const SectionFile& file) { return file.names(); }, "The sections, in the file's order.")
      .def("section", &section_view, py::arg("name"), "The section as uint8, read-only, in place.")
      .def("verify", &SectionFile::verify, py::call_guard<py::gil_scoped_release>(),
           "Reads everything and compares all checksums; raises ValueError.");
}

}  // namespace

void bind_trie(py::module_& m) {
  bind_file(m);
  py::class_<Trie, TrieHandle>(m, "Trie", "An immutable token trie; thread-safe, the root is node 0.")
      .def_static("build", &build, py::arg("tokens"), py::arg("offsets"), py::kw_only(),
                  py::arg("threads") = 0, "From sequences end to end: tokens int32, offsets int64 [n + 1].")
      .def_static(
          "from_sections",
          [](FileHandle file, const std::string& prefix) {
            return handle(Trie::from_sections(std::move(file), prefix));
          },
          py::arg("file").none(false), py::arg("prefix"), "The trie in these sections of a file, in place.")
      .def_static(
          "open", [](const py::object& path) { return handle(Trie::from_sections(open_file(path), kAlone)); },
          py::arg("path"), "Maps a file that `save` wrote.")
      .def(
          "save",
          [](const Trie& trie, const py::object& path) {
            const std::string name = file_name(path);
            const py::gil_scoped_release release;
            SectionFile::write(name, "", trie.sections(kAlone));
          },
          py::arg("path"), "Writes a file with this trie alone, whole or not at all.")
      .def(
          "arrays", [](const py::object& self) { return arrays(self, ""); },
          "The trie's own arrays by name, read-only, in place.")
      .def("sections", &arrays, py::arg("prefix"), "The same as 'prefix.name', for SectionFile.write.")
      .def("is_sound", &Trie::is_sound, py::call_guard<py::gil_scoped_release>(),
           "Whether every index stays inside and the order is a trie's; reads everything.")
      .def("children", &children, py::arg("node"), "Tokens of the node's children, ascending.")
      .def("step", &step, py::arg("node"), py::arg("token"), "The child by `token`, or -1.")
      .def(
          "walk",
          [](const Trie& trie, const py::object& tokens) {
            return trie.walk(view<int32_t>(tokens, "tokens"));
          },
          py::arg("tokens"), "The node that int32 `tokens` lead to, or -1.")
      .def("find", &find, py::arg("tokens"),
           "Every name that stands in int32 `tokens`: (begins, ends, nodes), each int64.")
      .def(
          "is_terminal",
          [](const Trie& trie, int64_t node) { return trie.is_terminal(checked_node(trie, node)); },
          py::arg("node"), "Whether a sequence ends here.")
      .def(
          "sequence_ids",
          [](const Trie& trie, int64_t node) {
            return as_int64(trie.sequence_ids(checked_node(trie, node)));
          },
          py::arg("node"), "Numbers of the sequences that end here.")
      .def(
          "nodes_of_sequences", [](const Trie& trie) { return as_int64(trie.nodes_of_sequences()); },
          "The node of each sequence, int64 [num_sequences].")
      .def(
          "rank", [](const Trie& trie, int64_t node) { return trie.rank(checked_node(trie, node)); },
          py::arg("node"), "Terminals before this node; a terminal's place in `ids`.")
      .def(
          "parent", [](const Trie& trie, int64_t node) { return trie.parent(checked_node(trie, node)); },
          py::arg("node"), "The node above; the root's is the root.")
      .def_property_readonly("token_bound", &Trie::token_bound)
      .def_property_readonly("num_nodes", &Trie::num_nodes)
      .def_property_readonly("num_terminals", &Trie::num_terminals)
      .def_property_readonly("num_sequences", &Trie::num_sequences)
      .def_property_readonly("nbytes", &Trie::nbytes);
}

}  // namespace obverse::python
