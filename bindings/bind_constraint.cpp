#include <string>

#include "array_view.hpp"
#include "bind.hpp"
#include "obverse/batch.hpp"
#include "obverse/constraint.hpp"
#include "obverse/matcher.hpp"

namespace obverse::python {
namespace {

using ConstraintHandle = std::shared_ptr<Constraint>;

Form parse_form(const std::string& form) {
  if (form == "fully_expanded") return Form::kFullyExpanded;
  require(form == "subject_collapsed", "form must be 'fully_expanded' or 'subject_collapsed', got '", form,
          "'");
  return Form::kSubjectCollapsed;
}

ConstraintHandle make_constraint(std::shared_ptr<Trie> entities, std::shared_ptr<Trie> relations,
                                 std::vector<int32_t> subject_marker, std::vector<int32_t> relation_marker,
                                 std::vector<int32_t> object_marker, std::vector<int32_t> end_marker,
                                 int64_t eos, const std::string& form, int64_t vocab_size) {
  MarkerTokens markers{std::move(subject_marker), std::move(relation_marker), std::move(object_marker),
                       std::move(end_marker)};
  return std::make_shared<Constraint>(std::move(entities), std::move(relations), std::move(markers), eos,
                                      parse_form(form), vocab_size);
}

py::array_t<int32_t> allowed(const Matcher& matcher) {
  std::vector<int32_t> tokens;
  matcher.append_allowed(&tokens);
  return adopt(std::move(tokens));
}

py::tuple allowed_rows(const Constraint& constraint, const py::object& token_rows,
                       const py::object& offsets) {
  const auto flat = view<int32_t>(token_rows, "token_rows");
  const auto starts = view<int64_t>(offsets, "offsets");
  TokenLists lists;
  {
    const py::gil_scoped_release release;
    lists = allowed_batch(constraint, Ragged<int32_t>(flat, starts));
  }
  return py::make_tuple(adopt(std::move(lists.tokens)), adopt(std::move(lists.offsets)));
}

LogitRows logit_rows(const py::object& logits) {
  auto array = checked_array<float>(logits, "logits", 2);
  require(array.writeable(), "logits must be writable, got a read-only array");
  constexpr auto kItem = static_cast<py::ssize_t>(sizeof(float));
  const bool columns_together = array.shape(1) <= 1 || array.strides(1) == kItem;
  const bool rows_apart =
      array.shape(0) <= 1 || (array.strides(0) % kItem == 0 && array.strides(0) >= array.shape(1) * kItem);
  require(columns_together && rows_apart, "logits must have contiguous rows, got strides (", array.strides(0),
          ", ", array.strides(1), ") bytes for shape ", shape_text(array));
  return {static_cast<float*>(array.mutable_data()), static_cast<size_t>(array.shape(0)),
          static_cast<size_t>(array.shape(1)), static_cast<size_t>(array.strides(0) / kItem)};
}

void mask_rows(const Constraint& constraint, const std::vector<const Matcher*>& matchers,
               const py::object& logits) {
  for (size_t i = 0; i < matchers.size(); ++i) {
    require(matchers[i] != nullptr, "matchers[", i, "] must be a Matcher, got None");
  }
  const LogitRows rows = logit_rows(logits);
  const py::gil_scoped_release release;
  mask_logits(constraint, matchers, rows);
}

void bind_matcher(py::module_& m) {
  py::class_<Matcher>(m, "Matcher", "One sequence's place in a constraint; not thread-safe.")
      .def(py::init([](const ConstraintHandle& constraint) { return std::make_unique<Matcher>(constraint); }),
           py::arg("constraint").none(false))
      .def("accept", &Matcher::accept, py::arg("token"),
           "Goes on by one token; False, and nothing changes, where it is not allowed.")
      .def("allowed", &allowed, "Tokens that may follow, ascending; none once complete.")
      .def(
          "fill_bitmask",
          [](const Matcher& matcher, const py::object& words) {
            matcher.fill_bitmask(writable_view<int32_t>(words, "bitmask"));
          },
          py::arg("bitmask"), "Overwrites int32 [bitmask_words(vocab_size)].")
      .def("rollback", &Matcher::rollback, py::arg("num_tokens"), "Takes back the last tokens.")
      .def(
          "fork", [](const Matcher& matcher) { return std::make_unique<Matcher>(matcher); },
          "An independent copy.")
      .def("reset", &Matcher::reset, "Back to the start.")
      .def(
          "replay",
          [](Matcher& matcher, const py::object& tokens) {
            return matcher.replay(view<int32_t>(tokens, "tokens"));
          },
          py::arg("tokens"),
          "Starts again with these; False, and nothing changes, where they are not allowed.")
      .def_property_readonly("is_complete", &Matcher::is_complete)
      .def_property_readonly("num_accepted", &Matcher::num_accepted);
}

}  // namespace

void bind_constraint(py::module_& m) {
  py::class_<Constraint, ConstraintHandle>(m, "Constraint",
                                           "Which token may follow; immutable and thread-safe.")
      .def(py::init(&make_constraint), py::arg("entities").none(false), py::arg("relations").none(false),
           py::arg("subject_marker"), py::arg("relation_marker"), py::arg("object_marker"),
           py::arg("end_marker"), py::arg("eos"), py::arg("form"), py::arg("vocab_size"))
      .def_property_readonly("vocab_size", &Constraint::vocab_size)
      .def_property_readonly("eos", &Constraint::eos)
      .def_property_readonly("form", [](const Constraint& constraint) {
        return constraint.form() == Form::kFullyExpanded ? "fully_expanded" : "subject_collapsed";
      });
  bind_matcher(m);
  m.def(
      "bitmask_words",
      [](int64_t vocab_size) {
        require(vocab_size >= 0, "vocab_size must be >= 0, got ", vocab_size);
        return bitmask_words(static_cast<size_t>(vocab_size));
      },
      py::arg("vocab_size"), "int32 words of a mask over `vocab_size` tokens.");
  m.def("allowed_batch", &allowed_rows, py::arg("constraint").none(false), py::arg("token_rows"),
        py::arg("offsets"),
        "Tokens that may follow each row, replayed from the start: (tokens int32, offsets int64).");
  m.def("mask_logits", &mask_rows, py::arg("constraint").none(false), py::arg("matchers"), py::arg("logits"),
        "Sets all but the allowed entries of float32 [b, v] to -inf in place; a complete row keeps eos.");
}

}  // namespace obverse::python
