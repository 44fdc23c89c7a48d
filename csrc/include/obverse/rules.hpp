// What a triplet may be, beyond "its names exist": typed relations, no repeats, only (or no) triplets of a graph, only
// this request's entities. None of them ever leads into a dead end: a name is offered only while some triplet with it
// is still open.
//
// Large sets (the entities of a type) are a bit a trie node: is anything allowed at or below it? What is taken out of
// them for one slot (a triplet already written, a graph's) is few, so a slot keeps only the nodes that died of it:
// the names themselves and the ways that led nowhere else. Small sets (a request's entities, a subject's neighbours in
// a graph, all relations) are a Subset with a bit a name.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "obverse/automaton.hpp"
#include "obverse/subset.hpp"
#include "obverse/trie.hpp"

namespace obverse {

/// Which types a relation's subject and object may have. Sequence numbers are the tries'.
struct TypeRules {
  std::vector<std::vector<uint32_t>> subject, object;  // by relation; empty: any entity
  Ragged<int32_t> types;                               // by entity
};

/// Triplets by sequence number, three columns of one length.
struct GraphRules {
  span<const int32_t> subjects, relations, objects;
  bool only;  // true: nothing else may be written; false: none of these may
};

/// A fact by its three terminal nodes.
struct Fact {
  uint32_t subject = 0, relation = 0, object = 0;
  bool operator==(const Fact&) const = default;
};

/// A whole triplet that one reading has written, and the one before it.
struct Written {
  Fact fact;
  uint32_t before;  // kNone: the first
  uint32_t count;
  static constexpr uint32_t kNone = 0xFFFFFFFF;
};

/// Entities as a bit a node.
struct NodeSet {
  std::vector<uint64_t> below;   // by node: an entity of the set at or below it
  std::vector<uint64_t> member;  // by terminal rank
  std::vector<int32_t> root_mask;
  bool reaches(uint32_t node) const { return (below[node / 64] >> (node % 64)) & 1U; }
  bool holds(uint32_t rank) const { return (member[rank / 64] >> (rank % 64)) & 1U; }
};

/// What one slot may hold, once what stands before it is known.
struct Filter {
  const Trie* trie = nullptr;
  const NodeSet* base = nullptr;       // none: every name
  std::vector<uint32_t> taken_out;     // terminals, ascending
  std::vector<uint32_t> dead;          // nodes with nothing left at or below them, ascending
  std::shared_ptr<const Subset> only;  // if set, these names alone, of which
  std::vector<uint64_t> open;          // a bit each is open

  bool is_empty() const;
  /// Whether the name that ends at this terminal may be written.
  bool holds(uint32_t terminal) const;
  /// Whether a way goes on through this node. Its parent must be one.
  bool reaches(uint32_t node) const;
};

/// One request's entities, with what follows from them before anything is written.
struct Request {
  std::shared_ptr<const Subset> entities;
  std::vector<uint64_t>
      relations;  // a bit a relation, in the order of Rules' relations: some pair of entities fits
  std::vector<uint64_t> subjects;  // a bit an entity: may stand as a subject
};

/// Immutable and thread-safe.
class Rules {
 public:
  /// Where in a triplet a reading stands.
  struct Context {
    uint32_t subject = 0, relation = 0;  // terminal nodes, once chosen
    uint32_t last = Written::kNone;      // in `written`
    span<const Written> written;
    const Fact* pending = nullptr;  // a triplet that is whole but not in `written` yet
    const Request* request = nullptr;
  };

  /// `types` and `graph` may be null. Throws ValueError on lengths or numbers that do not fit the tries, and where no
  /// triplet at all is allowed.
  Rules(std::shared_ptr<const Trie> entities, std::shared_ptr<const Trie> relations, bool unique,
        const TypeRules* types, const GraphRules* graph);

  /// Throws ValueError where the subset is of another trie.
  std::shared_ptr<const Request> prepare(std::shared_ptr<const Subset> entities) const;
  std::shared_ptr<const Filter> filter(Slot slot, const Context& context) const;
  /// Whether that slot has anything to offer.
  bool is_open(Slot slot, const Context& context) const;

 private:
  struct Edge {
    uint32_t relation, object;  // terminal nodes
    auto operator<=>(const Edge&) const = default;
  };
  static constexpr uint32_t kAny = 0xFFFFFFFF;

  void add_types(const TypeRules& types);
  void add_graph(const GraphRules& graph);
  void find_subjects();
  uint32_t set_of(const std::vector<uint32_t>& wanted, const TypeRules& types,
                  std::vector<std::vector<uint32_t>>* known);
  NodeSet node_set(std::vector<uint64_t> member) const;
  bool in_set(uint32_t set, uint32_t terminal) const {
    return set == kAny || sets_[set].holds(entities_->rank(terminal));
  }
  span<const Edge> edges(uint32_t subject) const;
  span<const Edge> edges(uint32_t subject, uint32_t relation) const;
  bool in_graph(const Fact& fact) const;
  template <typename Visit>
  void for_each_written(const Context& context, const Visit& visit) const;
  bool is_written(const Fact& fact, const Context& context) const;
  bool is_asked_for(uint32_t entity, const Context& context) const;
  bool allows(const Fact& fact, const Context& context) const;
  std::vector<uint32_t> objects_taken_out(const Context& context) const;
  bool pair_is_open(uint32_t subject, size_t relation, const Context& context) const;
  bool subject_is_open(uint32_t subject, const Context& context) const;
  Filter subjects(const Context& context) const;
  Filter relations(const Context& context) const;
  Filter objects(const Context& context) const;
  Filter few_objects(std::vector<uint32_t> candidates, const Context& context) const;
  void close(Filter* filter) const;

  std::shared_ptr<const Trie> entities_, relations_;
  bool unique_;
  bool typed_ = false, has_graph_ = false, only_graph_ = false;
  std::shared_ptr<const Subset> all_relations_;
  std::vector<uint32_t> subject_set_, object_set_;  // by place in all_relations_
  std::vector<NodeSet> sets_;
  std::vector<uint64_t> relation_open_;  // a bit a relation: its sets are not empty
  bool some_subjects_ = false;           // whether subjects_ says less than "all"
  NodeSet subjects_;
  std::vector<uint32_t> edge_begin_;  // by entity rank
  std::vector<Edge> edges_;
};

}  // namespace obverse
