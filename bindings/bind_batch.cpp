#include "array_view.hpp"
#include "bind.hpp"
#include "obverse/batch.hpp"
#include "obverse/row_states.hpp"

namespace obverse::python {
namespace {

using Matchers = std::vector<Matcher*>;

const Matchers& checked(const Matchers& matchers) {
  for (size_t i = 0; i < matchers.size(); ++i) {
    require(matchers[i] != nullptr, "matchers[", i, "] must be a Matcher, got None");
  }
  return matchers;
}

/// Rows that may lie apart, each contiguous.
template <typename T>
size_t row_stride(const py::array& array, const char* name) {
  constexpr auto kItem = static_cast<py::ssize_t>(sizeof(T));
  const bool columns_together = array.shape(1) <= 1 || array.strides(1) == kItem;
  const bool rows_apart =
      array.shape(0) <= 1 || (array.strides(0) % kItem == 0 && array.strides(0) >= array.shape(1) * kItem);
  require(columns_together && rows_apart, name, " must have contiguous rows, got strides (", array.strides(0),
          ", ", array.strides(1), ") bytes for shape ", shape_text(array));
  return static_cast<size_t>(array.strides(0) / kItem);
}

LogitRows logit_rows(const py::object& logits, const char* name, bool writable) {
  const py::array array = checked_array<float>(logits, name, 2);
  require(!writable || array.writeable(), name, " must be writable, got a read-only array");
  return {const_cast<float*>(static_cast<const float*>(array.data())), static_cast<size_t>(array.shape(0)),
          static_cast<size_t>(array.shape(1)), row_stride<float>(array, name)};
}

TokenRows token_rows(const py::object& tokens) {
  const py::array array = checked_array<int64_t>(tokens, "tokens", 2);
  return {static_cast<const int64_t*>(array.data()), static_cast<size_t>(array.shape(0)),
          static_cast<size_t>(array.shape(1)), row_stride<int64_t>(array, "tokens")};
}

void accept(const Matchers& matchers, const py::object& tokens) {
  const auto given = view<int32_t>(tokens, "tokens");
  checked(matchers);
  const py::gil_scoped_release release;
  accept_batch(matchers, given);
}

void fill(const Matchers& matchers, const py::object& bitmask) {
  const py::array array = checked_array<int32_t>(bitmask, "bitmask", 2);
  require((array.flags() & py::array::c_style) != 0 && array.writeable(),
          "bitmask must be C-contiguous and writable, got another layout of shape ", shape_text(array));
  require(static_cast<size_t>(array.shape(0)) == matchers.size(), "bitmask must have a row a matcher, ",
          matchers.size(), ", got shape ", shape_text(array));
  const span<int32_t> words(const_cast<int32_t*>(static_cast<const int32_t*>(array.data())),
                            static_cast<size_t>(array.size()));
  checked(matchers);
  const py::gil_scoped_release release;
  fill_bitmask_batch(matchers, words);
}

void mask(const Matchers& matchers, const py::object& logits) {
  checked(matchers);
  const LogitRows rows = logit_rows(logits, "logits", true);
  const py::gil_scoped_release release;
  mask_logits(matchers, rows);
}

py::array_t<int32_t> argmax(const Matchers& matchers, const py::object& logits) {
  checked(matchers);
  const LogitRows rows = logit_rows(logits, "logits", false);
  std::vector<int32_t> tokens(matchers.size());
  {
    const py::gil_scoped_release release;
    argmax_allowed(matchers, rows, tokens);
  }
  return adopt(std::move(tokens));
}

py::tuple allowed(const Matchers& matchers) {
  checked(matchers);
  std::vector<int32_t> tokens;
  std::vector<int64_t> offsets{0};
  {
    const py::gil_scoped_release release;
    for (const Matcher* matcher : matchers) {
      matcher->append_allowed(&tokens);
      offsets.push_back(static_cast<int64_t>(tokens.size()));
    }
  }
  return py::make_tuple(adopt(std::move(tokens)), adopt(std::move(offsets)));
}

void restrict_to(RowStates& states, const std::vector<std::shared_ptr<Subset>>& groups) {
  const std::vector<std::shared_ptr<const Subset>> given(groups.begin(), groups.end());
  const py::gil_scoped_release release;
  states.restrict_to(given);
}

void step(RowStates& states, const py::object& tokens, const py::object& scores, const py::object& out,
          int64_t slot, bool reuse) {
  require(slot == 0 || slot == 1, "slot must be 0 or 1, got ", slot);
  const TokenRows rows = token_rows(tokens);
  const LogitRows from = logit_rows(scores, "scores", false);
  const LogitRows to = logit_rows(out, "out", true);
  const py::gil_scoped_release release;
  states.advance(rows);
  states.select(from, to, static_cast<size_t>(slot), reuse);
}

py::tuple allowed_rows(RowStates& states, const py::object& tokens) {
  const TokenRows rows = token_rows(tokens);
  std::vector<int32_t> flat;
  std::vector<int64_t> offsets{0};
  {
    const py::gil_scoped_release release;
    states.advance(rows);
    for (size_t i = 0; i < states.num_rows(); ++i) {
      states.append_allowed(i, &flat);
      offsets.push_back(static_cast<int64_t>(flat.size()));
    }
  }
  return py::make_tuple(adopt(std::move(flat)), adopt(std::move(offsets)));
}

py::array mask_words(const py::object& self) {
  const auto& rows = self.cast<const MaskRows&>();
  py::array_t<int32_t> array(
      {static_cast<py::ssize_t>(rows.num_rows()), static_cast<py::ssize_t>(rows.width())},
      rows.words().data(), self);
  array.attr("setflags")(py::arg("write") = false);
  return array;
}

}  // namespace

void bind_batch(py::module_& m) {
  m.def("accept_batch", &accept, py::arg("matchers"), py::arg("tokens"),
        "Goes on by int32 tokens [b]; ValueError names the row that may not.");
  m.def("fill_bitmask_batch", &fill, py::arg("matchers"), py::arg("bitmask"),
        "Overwrites int32 [b, bitmask_words(vocab_size)].");
  m.def("allowed_batch", &allowed, py::arg("matchers"),
        "Tokens that may follow each: (tokens int32, offsets int64 [b + 1]).");
  m.def("mask_logits", &mask, py::arg("matchers"), py::arg("logits"),
        "Sets all but the allowed entries of float32 [b, v] to -inf in place; a complete row keeps eos.");
  m.def("argmax_allowed", &argmax, py::arg("matchers"), py::arg("logits"),
        "The likeliest allowed token of each row of float32 [b, v], int32; reads the allowed entries alone.");
  py::class_<MaskRows>(m, "MaskRows", "Packed masks that remember what was set; not thread-safe.")
      .def(py::init([](int64_t num_rows, int64_t vocab_size) {
             require(num_rows >= 1 && vocab_size >= 1, "num_rows and vocab_size must be >= 1, got ", num_rows,
                     " and ", vocab_size);
             return std::make_unique<MaskRows>(static_cast<size_t>(num_rows),
                                               static_cast<size_t>(vocab_size));
           }),
           py::arg("num_rows"), py::arg("vocab_size"))
      .def_property_readonly("words", &mask_words)
      .def(
          "fill",
          [](MaskRows& rows, const Matchers& matchers) {
            checked(matchers);
            const py::gil_scoped_release release;
            rows.fill(matchers);
          },
          py::arg("matchers"), "Row i says what matcher i may accept; clears what the last fill set.");
  py::class_<RowStates>(m, "RowStates", "States of rows known by their tokens so far; not thread-safe.")
      .def(py::init([](std::shared_ptr<Constraint> constraint) {
             return std::make_unique<RowStates>(std::move(constraint));
           }),
           py::arg("constraint").none(false))
      .def("restrict_to", &restrict_to, py::arg("groups"),
           "One Subset or None for each group of rows that lie together; [] lifts the limit.")
      .def("step", &step, py::arg("tokens"), py::arg("scores"), py::arg("out"), py::arg("slot"),
           py::arg("reuse"),
           "From generated int64 tokens [b, t]: copies allowed entries of float32 scores [b, v] to out. "
           "reuse: out is "
           "as the last step with this slot left it; else all other entries are set to -inf.")
      .def("allowed", &allowed_rows, py::arg("tokens"),
           "What may follow each row of int64 tokens [b, t]: (tokens int32, offsets int64); eos at least.");
}

}  // namespace obverse::python
