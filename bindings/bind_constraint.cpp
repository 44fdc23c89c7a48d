#include <string>

#include "array_view.hpp"
#include "bind.hpp"
#include "obverse/constraint.hpp"
#include "obverse/matcher.hpp"
#include "obverse/subset.hpp"

namespace obverse::python {
namespace {

using ConstraintHandle = std::shared_ptr<Constraint>;
using SubsetHandle = std::shared_ptr<Subset>;
using PartTuple = std::tuple<py::object, std::vector<uint32_t>, bool>;

Slot parse_slot(const std::string& name) {
  for (const Slot slot : {Slot::kSubject, Slot::kRelation, Slot::kObject}) {
    if (name == name_of(slot)) return slot;
  }
  throw ValueError(concat("a slot must be 'subject', 'relation' or 'object', got '", name, "'"));
}

Automaton parse_automaton(const std::vector<PartTuple>& parts,
                          const std::pair<std::vector<uint32_t>, bool>& start, int64_t eos,
                          int64_t vocab_size) {
  std::vector<Part> parsed;
  for (const auto& [what, next, can_end] : parts) {
    Part part{Slot::kNone, {}, next, can_end};
    if (py::isinstance<py::str>(what)) {
      part.slot = parse_slot(what.cast<std::string>());
    } else {
      for (const int64_t token : what.cast<std::vector<int64_t>>()) {
        require(token >= 0 && token < vocab_size, "parts[", parsed.size(), "] must hold tokens in [0, ",
                vocab_size, "), got ", token);
        part.tokens.push_back(static_cast<uint32_t>(token));
      }
    }
    parsed.push_back(std::move(part));
  }
  return Automaton(std::move(parsed), {Slot::kNone, {}, start.first, start.second}, eos, vocab_size);
}

/// (subject types by relation, object types by relation, entity types int32, offsets int64)
using TypesTuple = std::tuple<std::vector<std::vector<uint32_t>>, std::vector<std::vector<uint32_t>>,
                              py::object, py::object>;
/// (subjects int32, relations int32, objects int32, only)
using GraphTuple = std::tuple<py::object, py::object, py::object, bool>;

ConstraintHandle make_constraint(std::shared_ptr<Trie> entities, std::shared_ptr<Trie> relations,
                                 const std::vector<PartTuple>& parts,
                                 const std::pair<std::vector<uint32_t>, bool>& start, int64_t eos,
                                 int64_t vocab_size, std::optional<int64_t> max_triplets, bool unique,
                                 const std::optional<TypesTuple>& types,
                                 const std::optional<GraphTuple>& graph) {
  require(!max_triplets.has_value() || *max_triplets >= 1, "max_triplets must be >= 1 or None, got ",
          max_triplets.value_or(0));
  Automaton automaton = parse_automaton(parts, start, eos, vocab_size);
  std::optional<TypeRules> type_rules;
  std::optional<GraphRules> graph_rules;
  if (types.has_value()) {
    const auto& [subject, object, flat, offsets] = *types;
    type_rules.emplace(TypeRules{
        subject, object,
        Ragged<int32_t>(view<int32_t>(flat, "entity types"), view<int64_t>(offsets, "entity type offsets"))});
  }
  if (graph.has_value()) {
    const auto& [subjects, relation_ids, objects, only] = *graph;
    graph_rules.emplace(GraphRules{view<int32_t>(subjects, "graph subjects"),
                                   view<int32_t>(relation_ids, "graph relations"),
                                   view<int32_t>(objects, "graph objects"), only});
  }
  const Limits limits{max_triplets.value_or(0), unique, type_rules ? &*type_rules : nullptr,
                      graph_rules ? &*graph_rules : nullptr};
  const py::gil_scoped_release release;
  return std::make_shared<Constraint>(std::move(entities), std::move(relations), std::move(automaton),
                                      limits);
}

py::object part_tuple(const Part& part) {
  py::object what =
      part.slot == Slot::kNone ? py::object(py::cast(part.tokens)) : py::object(py::str(name_of(part.slot)));
  return py::make_tuple(what, part.next, part.can_end);
}

py::list parts_of(const Constraint& constraint) {
  py::list out;
  const Automaton& automaton = constraint.automaton();
  for (uint32_t i = 0; i < automaton.start(); ++i) out.append(part_tuple(automaton.part(i)));
  return out;
}

py::list read(const Constraint& constraint, const py::object& tokens) {
  std::vector<Fact> facts;
  {
    const auto sequence = view<int32_t>(tokens, "tokens");
    const py::gil_scoped_release release;
    facts = constraint.read(sequence);
  }
  py::list out;
  for (const Fact& fact : facts) out.append(py::make_tuple(fact.subject, fact.relation, fact.object));
  return out;
}

SubsetHandle make_subset(std::shared_ptr<Trie> trie, const py::object& nodes) {
  const auto wanted = view<int64_t>(nodes, "nodes");
  std::vector<uint32_t> terminals;
  for (const int64_t node : wanted) {
    require(node >= 0 && node < Trie::kOverflow, "nodes must be a trie's, got ", node);
    terminals.push_back(static_cast<uint32_t>(node));
  }
  const py::gil_scoped_release release;
  return std::make_shared<Subset>(std::move(trie), terminals);
}

py::array_t<int32_t> allowed(const Matcher& matcher) {
  std::vector<int32_t> tokens;
  matcher.append_allowed(&tokens);
  return adopt(std::move(tokens));
}

void bind_matcher(py::module_& m) {
  py::class_<Matcher>(m, "Matcher", "One sequence's place in a constraint; not thread-safe.")
      .def(py::init([](const ConstraintHandle& constraint, SubsetHandle subset) {
             return std::make_unique<Matcher>(constraint, std::move(subset));
           }),
           py::arg("constraint").none(false), py::kw_only(), py::arg("subset") = nullptr)
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
      .def_property_readonly("eos", [](const Matcher& matcher) { return matcher.constraint()->eos(); })
      .def_property_readonly("is_complete", &Matcher::is_complete)
      .def_property_readonly("num_accepted", &Matcher::num_accepted);
}

}  // namespace

void bind_constraint(py::module_& m) {
  py::class_<Subset, SubsetHandle>(m, "Subset", "A few names of a trie: all that one request may write.")
      .def(py::init(&make_subset), py::arg("trie").none(false), py::arg("nodes"))
      .def("__len__", [](const Subset& subset) { return subset.terminals().size(); })
      .def_property_readonly("nodes", [](const Subset& subset) {
        return adopt(std::vector<int64_t>(subset.terminals().begin(), subset.terminals().end()));
      });
  py::class_<Constraint, ConstraintHandle>(m, "Constraint",
                                           "Which token may follow; immutable and thread-safe.")
      .def(py::init(&make_constraint), py::arg("entities").none(false), py::arg("relations"), py::kw_only(),
           py::arg("parts"), py::arg("start"), py::arg("eos"), py::arg("vocab_size"),
           py::arg("max_triplets") = py::none(), py::arg("unique") = false, py::arg("types") = py::none(),
           py::arg("graph") = py::none())
      .def("read", &read, py::arg("tokens"),
           "The whole triplets of int32 `tokens`: (subject, relation, object) terminal nodes; [] where not "
           "allowed.")
      .def_property_readonly("vocab_size", &Constraint::vocab_size)
      .def_property_readonly("eos", &Constraint::eos)
      .def_property_readonly("parts", &parts_of)
      .def_property_readonly("start",
                             [](const Constraint& constraint) {
                               const Part& start =
                                   constraint.automaton().part(constraint.automaton().start());
                               return py::make_tuple(start.next, start.can_end);
                             })
      .def_property_readonly("max_triplets",
                             [](const Constraint& constraint) {
                               const uint32_t limit = constraint.max_triplets();
                               return limit == 0 ? std::optional<uint32_t>() : std::optional<uint32_t>(limit);
                             })
      .def_property_readonly("has_memory", &Constraint::has_rules)
      .def_property_readonly(
          "entities",
          [](const Constraint& constraint) { return std::const_pointer_cast<Trie>(constraint.entities()); })
      .def_property_readonly("relations", [](const Constraint& constraint) {
        return std::const_pointer_cast<Trie>(constraint.relations());
      });
  bind_matcher(m);
  m.def(
      "bitmask_words",
      [](int64_t vocab_size) {
        require(vocab_size >= 0, "vocab_size must be >= 0, got ", vocab_size);
        return bitmask_words(static_cast<size_t>(vocab_size));
      },
      py::arg("vocab_size"), "int32 words of a mask over `vocab_size` tokens.");
}

}  // namespace obverse::python
