// Random hyperplane trees (splits at the median of the projection on the difference of two rows, as in Dasgupta and
// Freund, STOC 2008), all pairs of every leaf, and rounds of neighbours of neighbours.
#include "exact_join_start.hpp"

#include <algorithm>
#include <climits>

#include "exact_join_kernels.hpp"
#include "obverse/random.hpp"
#include "parallel.hpp"

namespace obverse {
namespace {

constexpr int64_t kLeaf = 512;
constexpr int64_t kPiece = 4096;  // items projected in one go

/// Bounded lists by (int8 inner product, -row); each belongs to one thread at a time.
class DotLists {
 public:
  DotLists(int64_t rows, int64_t kept)
      : kept_(kept),
        ids_(static_cast<size_t>(rows * kept), -1),
        dots_(static_cast<size_t>(rows * kept), INT_MIN) {}
  const int32_t* ids(int64_t row) const { return ids_.data() + row * kept_; }
  void offer(int64_t row, int32_t id, int32_t dot) {
    int32_t* const ids = ids_.data() + row * kept_;
    int32_t* const dots = dots_.data() + row * kept_;
    if (dot < dots[kept_ - 1]) return;
    int64_t at = kept_;
    while (at > 0 && (dots[at - 1] < dot || (dots[at - 1] == dot && (ids[at - 1] < 0 || ids[at - 1] > id))))
      --at;
    if (at == kept_ || (at > 0 && ids[at - 1] == id && dots[at - 1] == dot)) return;
    std::copy_backward(ids + at, ids + kept_ - 1, ids + kept_);
    std::copy_backward(dots + at, dots + kept_ - 1, dots + kept_);
    ids[at] = id;
    dots[at] = dot;
  }
  const std::vector<int32_t>& all() const { return ids_; }
  std::vector<int32_t> take() { return std::move(ids_); }

 private:
  int64_t kept_;
  std::vector<int32_t> ids_, dots_;
};

std::vector<int32_t> row_sums(const JoinSide& side, int64_t width, int threads) {
  std::vector<int32_t> sums(static_cast<size_t>(side.x.rows));
  parallel_for(threads, side.x.rows, 4096, [&](int64_t first, int64_t last, int) {
    for (int64_t i = first; i < last; ++i) {
      int32_t sum = 0;
      for (int64_t c = 0; c < width; ++c) sum += side.q[i * width + c];
      sums[static_cast<size_t>(i)] = sum;
    }
  });
  return sums;
}

/// A set of rows of one side, cut in the same places as the other side's.
struct Members {
  std::vector<int32_t> items;
  std::vector<int32_t> values;  // of the level's projection, one an item
};

struct Node {
  int64_t row_begin, row_end, column_begin, column_end;
  int64_t columns() const { return column_end - column_begin; }
};

class Forest {
 public:
  Forest(const JoinProblem& problem, span<const int32_t> rows, span<const int32_t> columns,
         const TreeStart& start)
      : problem_(problem),
        kernels_(join_kernels(problem.run.isa)),
        start_(start),
        x_sums_(row_sums(problem.x, problem.width, problem.run.threads)),
        y_sums_(problem.self ? std::vector<int32_t>()
                             : row_sums(problem.y, problem.width, problem.run.threads)),
        leaf_(std::max(kLeaf, 2 * start.kept)),
        lists_(problem.x.x.rows, start.kept) {
    rows_.items.assign(rows.begin(), rows.end());
    if (!problem.self) columns_.items.assign(columns.begin(), columns.end());
    rows_.values.resize(rows_.items.size());
    columns_.values.resize(columns_.items.size());
  }

  void grow(int64_t tree) {
    const auto num_rows = static_cast<int64_t>(rows_.items.size());
    const auto num_columns = static_cast<int64_t>(base().items.size());
    std::vector<Node> level{{0, num_rows, 0, num_columns}}, leaves;
    for (int64_t depth = 0; !level.empty(); ++depth) {
      std::vector<Node> inner;
      for (const Node& node : level) (node.columns() > leaf_ ? inner : leaves).push_back(node);
      level = split(inner, KeyedRandom(start_.seed, static_cast<uint64_t>(tree * 64 + depth)));
    }
    parallel_for(problem_.run.threads, static_cast<int64_t>(leaves.size()), 1,
                 [&](int64_t first, int64_t last, int) {
                   for (int64_t i = first; i < last; ++i) join_leaf(leaves[static_cast<size_t>(i)]);
                 });
  }

  void neighbours_of_neighbours() {
    const std::vector<int32_t> before = lists_.all();
    const auto n = static_cast<int64_t>(rows_.items.size());
    parallel_for(problem_.run.threads, n, 256, [&](int64_t first, int64_t last, int) {
      std::vector<int32_t> found, dots;
      for (int64_t t = first; t < last; ++t) {
        const int32_t row = rows_.items[static_cast<size_t>(t)];
        found.clear();
        const int32_t* const own = before.data() + row * start_.kept;
        for (int64_t a = 0; a < start_.kept && own[a] >= 0; ++a) {
          const int32_t* const theirs = before.data() + own[a] * start_.kept;
          found.insert(found.end(), theirs, theirs + start_.kept);
        }
        std::sort(found.begin(), found.end());
        found.erase(std::unique(found.begin(), found.end()), found.end());
        std::erase_if(found, [&](int32_t id) { return id < 0 || id == row; });
        dots.resize(found.size());
        kernels_.dots(problem_.x.q + row * problem_.width, problem_.x.q, x_sums_.data(), problem_.width,
                      found.data(), static_cast<int64_t>(found.size()), dots.data());
        for (size_t c = 0; c < found.size(); ++c) lists_.offer(row, found[c], dots[c]);
      }
    });
  }

  std::vector<int32_t> take() { return lists_.take(); }

 private:
  Members& base() { return problem_.self ? rows_ : columns_; }
  const int8_t* row_q(int32_t id) const { return problem_.x.q + id * problem_.width; }
  const int8_t* column_q(int32_t id) const {
    return (problem_.self ? problem_.x.q : problem_.y.q) + id * problem_.width;
  }

  /// Projects every member of the nodes on its node's direction, and cuts the nodes at their columns' median.
  std::vector<Node> split(const std::vector<Node>& nodes, KeyedRandom random) {
    std::vector<std::pair<int32_t, int32_t>> ends;  // two columns a node
    for (const Node& node : nodes) {
      const auto pick = [&] {
        const auto at =
            node.column_begin + static_cast<int64_t>(random.below(static_cast<uint64_t>(node.columns())));
        return base().items[static_cast<size_t>(at)];
      };
      const int32_t a = pick();
      ends.emplace_back(a, pick());
    }
    for (size_t i = 0; i < nodes.size(); ++i) {
      const Node& node = nodes[i];
      project(base(), node.column_begin, node.column_end, ends[i], problem_.self);
      if (!problem_.self) project(rows_, node.row_begin, node.row_end, ends[i], true);
    }
    std::vector<Node> halves(2 * nodes.size());
    parallel_for(problem_.run.threads, static_cast<int64_t>(nodes.size()), 1,
                 [&](int64_t first, int64_t last, int) {
                   std::vector<std::pair<int32_t, int32_t>> order;
                   for (int64_t i = first; i < last; ++i) {
                     halve(nodes[static_cast<size_t>(i)], order, halves.data() + 2 * i);
                   }
                 });
    return halves;
  }

  void project(Members& members, int64_t begin, int64_t end, std::pair<int32_t, int32_t> ends, bool of_x) {
    const int8_t* const q = of_x ? problem_.x.q : problem_.y.q;
    const int32_t* const sums = of_x ? x_sums_.data() : y_sums_.data();
    const int64_t pieces = (end - begin + kPiece - 1) / kPiece;
    parallel_for(problem_.run.threads, pieces, 1, [&](int64_t first, int64_t last, int) {
      std::vector<int32_t> other(kPiece);
      for (int64_t i = first; i < last; ++i) {
        const int64_t from = begin + i * kPiece, count = std::min(kPiece, end - from);
        int32_t* const values = members.values.data() + from;
        const int32_t* const items = members.items.data() + from;
        kernels_.dots(column_q(ends.first), q, sums, problem_.width, items, count, values);
        kernels_.dots(column_q(ends.second), q, sums, problem_.width, items, count, other.data());
        for (int64_t t = 0; t < count; ++t) values[t] -= other[static_cast<size_t>(t)];
      }
    });
  }

  void halve(const Node& node, std::vector<std::pair<int32_t, int32_t>>& order, Node* halves) {
    Members& columns = base();
    order.clear();
    for (int64_t t = node.column_begin; t < node.column_end; ++t) {
      order.emplace_back(columns.values[static_cast<size_t>(t)], columns.items[static_cast<size_t>(t)]);
    }
    const int64_t half = node.columns() / 2;
    std::nth_element(order.begin(), order.begin() + half, order.end());
    const std::pair<int32_t, int32_t> median = order[static_cast<size_t>(half)];
    for (int64_t t = 0; t < node.columns(); ++t) {
      columns.items[static_cast<size_t>(node.column_begin + t)] = order[static_cast<size_t>(t)].second;
    }
    int64_t row_cut = node.row_begin + half;
    if (!problem_.self) {
      order.clear();
      for (int64_t t = node.row_begin; t < node.row_end; ++t) {
        order.emplace_back(rows_.values[static_cast<size_t>(t)], rows_.items[static_cast<size_t>(t)]);
      }
      const auto cut = std::partition(order.begin(), order.end(),
                                      [&](const auto& one) { return one.first < median.first; });
      row_cut = node.row_begin + (cut - order.begin());
      for (size_t t = 0; t < order.size(); ++t) {
        rows_.items[static_cast<size_t>(node.row_begin) + t] = order[t].second;
      }
    }
    const int64_t column_cut = node.column_begin + half;
    halves[0] = {node.row_begin, row_cut, node.column_begin, column_cut};
    halves[1] = {row_cut, node.row_end, column_cut, node.column_end};
  }

  void join_leaf(const Node& node) {
    const int64_t width = problem_.width, count = node.columns();
    const int32_t* const columns = base().items.data() + node.column_begin;
    std::vector<int8_t> q(static_cast<size_t>(count * width));
    std::vector<int32_t> sums(static_cast<size_t>(count)), list(static_cast<size_t>(count)), dots(list);
    const std::vector<int32_t>& all_sums = problem_.self ? x_sums_ : y_sums_;
    for (int64_t t = 0; t < count; ++t) {
      std::copy_n(column_q(columns[t]), width, q.data() + t * width);
      sums[static_cast<size_t>(t)] = all_sums[static_cast<size_t>(columns[t])];
      list[static_cast<size_t>(t)] = static_cast<int32_t>(t);
    }
    for (int64_t a = node.row_begin; a < node.row_end; ++a) {
      const int32_t row = rows_.items[static_cast<size_t>(a)];
      const int64_t from = problem_.self ? a - node.row_begin + 1 : 0;
      kernels_.dots(row_q(row), q.data(), sums.data(), width, list.data() + from, count - from, dots.data());
      for (int64_t t = from; t < count; ++t) {
        const int32_t dot = dots[static_cast<size_t>(t - from)];
        lists_.offer(row, columns[t], dot);
        if (problem_.self) lists_.offer(columns[t], row, dot);
      }
    }
  }

  const JoinProblem& problem_;
  const JoinKernels& kernels_;
  TreeStart start_;
  std::vector<int32_t> x_sums_, y_sums_;
  int64_t leaf_;
  Members rows_, columns_;
  DotLists lists_;
};

}  // namespace

std::vector<int32_t> tree_candidates(const JoinProblem& problem, span<const int32_t> rows,
                                     span<const int32_t> columns, const TreeStart& start) {
  Forest forest(problem, rows, columns, start);
  if (rows.empty() || (!problem.self && columns.empty())) return forest.take();
  for (int64_t tree = 0; tree < start.trees; ++tree) forest.grow(tree);
  if (problem.self) {
    for (int64_t round = 0; round < start.rounds; ++round) forest.neighbours_of_neighbours();
  }
  return forest.take();
}

}  // namespace obverse
