#include "obverse/graph_select.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

namespace obverse {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

void check_factors(span<const double> values, size_t n, const char* name) {
  if (values.empty()) return;
  require(values.size() == n, name, " must have one entry a row, ", n, ", got ", values.size());
  for (size_t i = 0; i < n; ++i) {
    require(std::isfinite(values[i]) && values[i] >= 0.0, name, "[", i, "] must be finite and >= 0, got ",
            values[i]);
  }
}

double chord(float similarity) {
  return std::sqrt(std::max(0.0, 2.0 - 2.0 * static_cast<double>(similarity)));
}

/// Farther rows are chosen first, equally far ones by rising row.
bool chosen_later(const std::pair<double, uint32_t>& a, const std::pair<double, uint32_t>& b) {
  return a.first < b.first || (a.first == b.first && a.second > b.second);
}

bool farther(const std::pair<double, uint32_t>& a, const std::pair<double, uint32_t>& b) { return a > b; }

}  // namespace

template <typename Index>
NeighbourGraph::NeighbourGraph(span<const Index> indices, span<const float> similarities, int64_t n,
                               int64_t k) {
  require(n >= 0 && n < 0xFFFFFFFFLL && k >= 0, "n must be in [0, 2^32 - 1) and k >= 0, got ", n, " and ", k);
  const auto rows = static_cast<size_t>(n), width = static_cast<size_t>(k);
  require(indices.size() == rows * width && similarities.size() == rows * width,
          "indices and similarities must have shape (", n, ", ", k, "), got ", indices.size(), " and ",
          similarities.size(), " entries");
  offsets_.assign(rows + 1, 0);
  for (size_t e = 0; e < indices.size(); ++e) {
    const auto i = e / width;
    const auto j = static_cast<int64_t>(indices[e]);
    if (j == -1 || j == static_cast<int64_t>(i)) continue;
    require(j >= 0 && j < n, "indices[", i, ", ", e % width, "] must be -1 or a row below ", n, ", got ", j);
    require(std::isfinite(similarities[e]), "similarities[", i, ", ", e % width, "] must be finite, got ",
            similarities[e]);
    ++offsets_[i + 1];
    ++offsets_[static_cast<size_t>(j) + 1];
  }
  for (size_t i = 0; i < rows; ++i) offsets_[i + 1] += offsets_[i];
  edges_.resize(offsets_[rows]);
  std::vector<size_t> next(offsets_.begin(), offsets_.end() - 1);
  for (size_t e = 0; e < indices.size(); ++e) {
    const auto i = static_cast<uint32_t>(e / width);
    if (indices[e] == Index{-1} || static_cast<int64_t>(indices[e]) == static_cast<int64_t>(i)) continue;
    const auto j = static_cast<uint32_t>(indices[e]);
    edges_[next[i]++] = {j, similarities[e]};
    edges_[next[j]++] = {i, similarities[e]};
  }
  size_t end = 0;
  for (size_t i = 0; i < rows; ++i) {
    Edge* const first = edges_.data() + offsets_[i];
    Edge* const last = edges_.data() + offsets_[i + 1];
    std::sort(first, last, [](const Edge& a, const Edge& b) {
      return a.row < b.row || (a.row == b.row && a.similarity > b.similarity);
    });
    offsets_[i] = end;
    for (const Edge* edge = first; edge != last; ++edge) {
      if (end == offsets_[i] || edges_[end - 1].row != edge->row) edges_[end++] = *edge;
    }
  }
  offsets_[rows] = end;
  edges_.resize(end);
}

template NeighbourGraph::NeighbourGraph(span<const int32_t>, span<const float>, int64_t, int64_t);
template NeighbourGraph::NeighbourGraph(span<const int64_t>, span<const float>, int64_t, int64_t);

FacilityLocation::FacilityLocation(const NeighbourGraph& graph, span<const double> weights,
                                   span<const double> qualities)
    : graph_(&graph), weight_(weights.begin(), weights.end()), quality_(qualities.begin(), qualities.end()) {
  check_factors(weights, graph.size(), "weight");
  check_factors(qualities, graph.size(), "quality");
  covered_.assign(graph.size(), 0.0);
  heap_.resize(graph.size());
  for (size_t row = 0; row < graph.size(); ++row) {
    heap_[row] = {gain(row), static_cast<uint32_t>(row)};
    double best = quality(row);
    for (const NeighbourGraph::Edge& edge : graph.edges(row)) {
      best = std::max(best, quality(edge.row) * static_cast<double>(edge.similarity));
    }
    total_ += weight(row) * best;
  }
  std::make_heap(heap_.begin(), heap_.end());
}

/// The row itself first, then its neighbours by rising number: one order for the sum, so that it never rises.
double FacilityLocation::gain(size_t row) const {
  const double own = quality(row);
  double sum = own > covered_[row] ? weight(row) * (own - covered_[row]) : 0.0;
  for (const NeighbourGraph::Edge& edge : graph_->edges(row)) {
    const double value = own * static_cast<double>(edge.similarity);
    if (value > covered_[edge.row]) sum += weight(edge.row) * (value - covered_[edge.row]);
  }
  return sum;
}

void FacilityLocation::cover(size_t row) {
  const double own = quality(row);
  covered_[row] = std::max(covered_[row], own);
  for (const NeighbourGraph::Edge& edge : graph_->edges(row)) {
    covered_[edge.row] = std::max(covered_[edge.row], own * static_cast<double>(edge.similarity));
  }
}

/// Moves the heap's first entry to its place.
void FacilityLocation::sink() {
  const Bound bound = heap_.front();
  const size_t size = heap_.size();
  size_t at = 0;
  for (size_t child = 1; child < size; child = 2 * at + 1) {
    if (child + 1 < size && heap_[child] < heap_[child + 1]) ++child;
    if (!(bound < heap_[child])) break;
    heap_[at] = heap_[child];
    at = child;
  }
  heap_[at] = bound;
}

void FacilityLocation::choose(int64_t count, std::vector<int64_t>* rows, std::vector<double>* gains) {
  for (int64_t taken = 0; taken < count && !heap_.empty(); ++taken) {
    while (true) {
      const uint32_t row = heap_.front().row;
      const double before = heap_.front().gain, now = gain(row);
      ++num_evaluated_;
      if (now == before) break;
      heap_.front().gain = now;
      sink();
      if (heap_.front().row == row) break;
    }
    const Bound chosen = heap_.front();
    heap_.front() = heap_.back();
    heap_.pop_back();
    if (!heap_.empty()) sink();
    cover(chosen.row);
    rows->push_back(chosen.row);
    gains->push_back(chosen.gain);
  }
}

GraphCenters::GraphCenters(const NeighbourGraph& graph, int64_t first)
    : graph_(&graph), first_(first), distance_(graph.size(), kInfinity) {
  require(graph.size() == 0 || (first >= 0 && first < static_cast<int64_t>(graph.size())),
          "first must be a row below ", graph.size(), ", got ", first);
  // Equally far rows by number are a heap.
  for (size_t row = 0; row < graph.size(); ++row) {
    if (static_cast<int64_t>(row) != first) heap_.emplace_back(kInfinity, static_cast<uint32_t>(row));
  }
  if (graph.size() == 0) first_ = -1;
}

void GraphCenters::choose(int64_t count, std::vector<int64_t>* rows, std::vector<double>* distances) {
  int64_t taken = 0;
  if (first_ >= 0 && count > 0) {
    rows->push_back(first_);
    distances->push_back(kInfinity);
    relax(static_cast<uint32_t>(std::exchange(first_, -1)));
    ++taken;
  }
  while (taken < count && !heap_.empty()) {
    const auto [key, row] = heap_.front();
    std::pop_heap(heap_.begin(), heap_.end(), chosen_later);
    if (distance_[row] < key) {
      heap_.back().first = distance_[row];
      std::push_heap(heap_.begin(), heap_.end(), chosen_later);
      continue;
    }
    heap_.pop_back();
    rows->push_back(row);
    distances->push_back(key);
    relax(row);
    ++taken;
  }
}

/// Dijkstra's search from a new centre, no further than where an older one is as near.
void GraphCenters::relax(uint32_t center) {
  distance_[center] = 0.0;
  queue_.assign(1, {0.0, center});
  while (!queue_.empty()) {
    std::pop_heap(queue_.begin(), queue_.end(), farther);
    const auto [reached, row] = queue_.back();
    queue_.pop_back();
    if (reached > distance_[row]) continue;
    for (const NeighbourGraph::Edge& edge : graph_->edges(row)) {
      const double through = reached + chord(edge.similarity);
      if (through >= distance_[edge.row]) continue;
      distance_[edge.row] = through;
      queue_.emplace_back(through, edge.row);
      std::push_heap(queue_.begin(), queue_.end(), farther);
    }
  }
}

double GraphCenters::radius() const {
  return distance_.empty() ? 0.0 : *std::max_element(distance_.begin(), distance_.end());
}

}  // namespace obverse
