#include "obverse/sampler.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <utility>

namespace obverse {
namespace {

/// (1 + count)^-power. The usual powers avoid pow(), whose last bit differs between C libraries.
double coverage_weight(uint32_t count, double power) {
  const double base = 1.0 + static_cast<double>(count);
  if (power == 0.0) return 1.0;
  if (power == 1.0) return 1.0 / base;
  if (power == 0.5) return 1.0 / std::sqrt(base);
  return std::pow(base, -power);
}

float entity_weight(uint32_t count, double power) {
  // Kept above the smallest normal float, so that a node can't vanish by underflow.
  return static_cast<float>(std::max(coverage_weight(count, power), 1e-30));
}

/// Index of the first running sum above u * total; sums must rise somewhere.
size_t pick(span<const double> running, double u) {
  const double x = u * running.back();
  const auto it = std::upper_bound(running.begin(), running.end(), x);
  if (it != running.end()) return static_cast<size_t>(it - running.begin());
  // Rounding put x at the total: the last item of positive weight.
  return static_cast<size_t>(std::lower_bound(running.begin(), running.end(), running.back()) -
                             running.begin());
}

void check_power(double power, const char* what) {
  require(std::isfinite(power) && power >= 0.0 && power <= 8.0, what, " must be in [0, 8], got ", power);
}

std::vector<double> cumulative_sizes(span<const double> weights) {
  require(!weights.empty(), "size_weights must hold at least one weight, got none");
  std::vector<double> running;
  double total = 0.0;
  for (size_t i = 0; i < weights.size(); ++i) {
    require(std::isfinite(weights[i]) && weights[i] >= 0.0, "size_weights[", i,
            "] must be finite and >= 0, got ", weights[i]);
    running.push_back(total += weights[i]);
  }
  require(total > 0.0 && std::isfinite(total), "size_weights must have a positive finite sum, got ", total);
  return running;
}

}  // namespace

Sampler::Sampler(const std::shared_ptr<const Graph>& graph, SamplerOptions options,
                 span<const uint8_t> relation_allowed, span<const uint8_t> entity_allowed)
    : graph_(relation_allowed.empty() && entity_allowed.empty()
                 ? graph
                 : graph->filtered(relation_allowed, entity_allowed)),
      options_(std::move(options)),
      size_cumulative_(cumulative_sizes(options_.size_weights)) {
  require(options_.reweight_every >= 1, "reweight_every must be >= 1, got ", options_.reweight_every);
  check_power(options_.relation_power, "relation_power");
  check_power(options_.entity_power, "entity_power");
  require(graph_->num_edges() > 0, "expected at least one allowed edge that is not a self loop, got none");
  relation_counts_.assign(graph_->num_relations(), 0);
  entity_counts_.assign(graph_->num_entities(), 0);
  relation_weights_.assign(graph_->num_relations(), 1.0);
  relation_cumulative_.assign(graph_->num_relations(), 0.0);
  entity_weights_.assign(graph_->num_entities(), 1.0F);
  entity_touched_.assign(graph_->num_entities(), 0);
  hub_offsets_.push_back(0);
  for (uint32_t node = 0; node < graph_->num_entities(); ++node) {
    if (graph_->degree(node) <= kScanLimit) continue;
    hubs_.push_back(node);
    hub_offsets_.push_back(hub_offsets_.back() +
                           static_cast<uint32_t>(graph_->group_end(node) - graph_->group_begin(node)));
  }
  hub_block_.assign(hubs_.size(), -1);
  hub_sums_.assign(hub_offsets_.back(), 0.0);
  start_block();
}

SampledSets Sampler::draw(int64_t count) {
  require(count >= 0, "count must be >= 0, got ", count);
  SampledSets out;
  out.offsets.reserve(static_cast<size_t>(count) + 1);
  for (int64_t i = 0; i < count; ++i) {
    make_set();
    for (const Edge& edge : edges_) {
      out.heads.push_back(static_cast<int32_t>(edge.head));
      out.predicates.push_back(static_cast<int32_t>(edge.relation));
      out.tails.push_back(static_cast<int32_t>(edge.tail));
    }
    out.offsets.push_back(static_cast<int64_t>(out.heads.size()));
  }
  return out;
}

void Sampler::skip(int64_t count) {
  require(count >= 0, "count must be >= 0, got ", count);
  for (int64_t i = 0; i < count; ++i) make_set();
}

void Sampler::make_set() {
  KeyedRandom random(options_.seed, static_cast<uint64_t>(position_));
  edges_.clear();
  nodes_.clear();
  exhausted_.clear();
  const size_t size = draw_size(random);
  add_edge(seed_edge(random));
  while (edges_.size() < size && grow(random)) {
  }
  count_set();
  ++position_;
  if (position_ % options_.reweight_every == 0) start_block();
}

void Sampler::start_block() {
  block_ = position_ / options_.reweight_every;
  double total = 0.0;
  for (uint32_t r = 0; r < graph_->num_relations(); ++r) {
    relation_weights_[r] = coverage_weight(relation_counts_[r], options_.relation_power);
    if (graph_->relation_begin(r) < graph_->relation_end(r)) total += relation_weights_[r];
    relation_cumulative_[r] = total;
  }
  for (const uint32_t node : touched_entities_) {
    entity_weights_[node] = entity_weight(entity_counts_[node], options_.entity_power);
    entity_touched_[node] = 0;
  }
  touched_entities_.clear();
}

void Sampler::count_set() {
  for (const Edge& edge : edges_) ++relation_counts_[edge.relation];
  for (const uint32_t node : nodes_) {
    ++entity_counts_[node];
    if (entity_touched_[node] == 0) {
      entity_touched_[node] = 1;
      touched_entities_.push_back(node);
    }
  }
}

size_t Sampler::draw_size(KeyedRandom& random) const { return pick(size_cumulative_, random.uniform()) + 1; }

Edge Sampler::seed_edge(KeyedRandom& random) {
  const auto relation = static_cast<uint32_t>(pick(relation_cumulative_, random.uniform()));
  const size_t begin = graph_->relation_begin(relation);
  const size_t count = graph_->relation_end(relation) - begin;
  const auto weight = [&](size_t e) {
    return static_cast<double>(entity_weights_[graph_->head(e)]) * entity_weights_[graph_->tail(e)];
  };
  const bool scan = count <= kScanLimit;
  const size_t num_candidates = scan ? count : kCandidates;
  std::array<size_t, kScanLimit> candidates;
  double total = 0.0;
  running_.clear();
  for (size_t i = 0; i < num_candidates; ++i) {
    candidates[i] = begin + (scan ? i : random.below(count));
    running_.push_back(total += weight(candidates[i]));
  }
  const size_t e = candidates[pick(running_, random.uniform())];
  return {graph_->head(e), relation, graph_->tail(e)};
}

bool Sampler::grow(KeyedRandom& random) {
  open_.resize(nodes_.size());
  std::iota(open_.begin(), open_.end(), size_t{0});
  std::erase_if(open_, [&](size_t i) { return exhausted_[i] != 0; });
  while (!open_.empty()) {
    const auto chosen = open_.begin() + static_cast<std::ptrdiff_t>(random.below(open_.size()));
    const uint32_t node = nodes_[*chosen];
    collect_partners(node);
    const Pick picked =
        graph_->degree(node) > kScanLimit ? resample_hub(node, random) : scan_node(node, random);
    if (picked.found) {
      add_edge(picked.edge);
      return true;
    }
    exhausted_[*chosen] = 1;
    open_.erase(chosen);
  }
  return false;
}

Sampler::Pick Sampler::scan_node(uint32_t node, KeyedRandom& random) {
  double total = 0.0;
  running_.clear();
  const size_t first_group = graph_->group_begin(node);
  for (size_t g = first_group; g < graph_->group_end(node); ++g) {
    const double weight = relation_weights_[graph_->group(g).relation];
    for (size_t entry = graph_->group(g).begin; entry < graph_->entries_end(g); ++entry) {
      const uint32_t other = graph_->other(entry);
      if (!is_partner(other)) total += weight * static_cast<double>(entity_weights_[other]);
      running_.push_back(total);
    }
  }
  if (total == 0.0) return {false, {}};
  const size_t entry = graph_->group(first_group).begin + pick(running_, random.uniform());
  size_t g = first_group;
  while (entry >= graph_->entries_end(g)) ++g;
  return {true, edge_at(node, g, entry)};
}

Sampler::Pick Sampler::resample_hub(uint32_t node, KeyedRandom& random) {
  const span<const double> sums = hub_cumulative(node);
  const size_t first_group = graph_->group_begin(node);
  std::array<std::pair<size_t, size_t>, kCandidates> candidates;  // group, entry
  std::array<double, kCandidates> running;
  double total = 0.0;
  for (size_t k = 0; k < kCandidates; ++k) {
    const size_t offset = pick(sums, random.uniform());
    const size_t g = first_group + offset;
    const size_t begin = graph_->group(g).begin;
    const size_t entry = begin + random.below(graph_->entries_end(g) - begin);
    const uint32_t other = graph_->other(entry);
    if (!is_partner(other)) total += static_cast<double>(entity_weights_[other]);
    candidates[k] = {g, entry};
    running[k] = total;
  }
  if (total == 0.0) return scan_node(node, random);
  const auto [g, entry] = candidates[pick(running, random.uniform())];
  return {true, edge_at(node, g, entry)};
}

span<const double> Sampler::hub_cumulative(uint32_t node) {
  const auto hub = static_cast<size_t>(std::lower_bound(hubs_.begin(), hubs_.end(), node) - hubs_.begin());
  const span<double> sums(hub_sums_.data() + hub_offsets_[hub], hub_offsets_[hub + 1] - hub_offsets_[hub]);
  if (hub_block_[hub] != block_) {
    hub_block_[hub] = block_;
    double total = 0.0;
    for (size_t i = 0; i < sums.size(); ++i) {
      const size_t g = graph_->group_begin(node) + i;
      const size_t size = graph_->entries_end(g) - graph_->group(g).begin;
      sums[i] = total += relation_weights_[graph_->group(g).relation] * static_cast<double>(size);
    }
  }
  return sums;
}

Edge Sampler::edge_at(uint32_t node, size_t group, size_t entry) const {
  const EdgeGroup& g = graph_->group(group);
  const uint32_t other = graph_->other(entry);
  return g.outgoing ? Edge{node, g.relation, other} : Edge{other, g.relation, node};
}

void Sampler::collect_partners(uint32_t node) {
  partners_.clear();
  for (const Edge& edge : edges_) {
    if (edge.head == node) partners_.push_back(edge.tail);
    if (edge.tail == node) partners_.push_back(edge.head);
  }
}

bool Sampler::is_partner(uint32_t node) const {
  return std::find(partners_.begin(), partners_.end(), node) != partners_.end();
}

void Sampler::add_edge(const Edge& edge) {
  edges_.push_back(edge);
  add_node(edge.head);
  add_node(edge.tail);
}

void Sampler::add_node(uint32_t node) {
  if (std::find(nodes_.begin(), nodes_.end(), node) == nodes_.end()) {
    nodes_.push_back(node);
    exhausted_.push_back(0);
  }
}

}  // namespace obverse
