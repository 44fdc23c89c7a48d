// A join's two sides from numpy arrays, which stay alive with it.
#pragma once

#include <utility>

#include "obverse/exact_join.hpp"
#include "vectors_view.hpp"

namespace obverse::python {

/// What Python holds of a side: (x, norms, q, error).
inline JoinSide join_side(const py::tuple& side, const char* name, int64_t& width) {
  require(side.size() == 4, name, " must be (x, norms, q, error), got ", side.size(), " entries");
  JoinSide out;
  out.x = vectors_view(side[0], name);
  const auto rows = static_cast<size_t>(out.x.rows);
  const auto norms = view<double>(side[1], "norms");
  const py::array q = checked_array<int8_t>(side[2], "q", 2);
  const auto error = view<float>(side[3], "error");
  require((q.flags() & py::array::c_style) != 0 && q.shape(0) == out.x.rows, "q must be C-contiguous with ",
          rows, " rows, got shape ", shape_text(q));
  require(norms.size() == rows && error.size() == rows, "norms and error must have ", rows, " entries, got ",
          norms.size(), " and ", error.size());
  width = q.shape(1);
  out.norms = norms.data();
  out.q = static_cast<const int8_t*>(q.data());
  out.error = error.data();
  return out;
}

/// y None: a self-join.
inline JoinProblem join_problem(const py::tuple& x, const py::object& y, double scale, int threads, int isa) {
  JoinProblem problem;
  problem.x = join_side(x, "x", problem.width);
  problem.self = y.is_none();
  int64_t width = problem.width;
  problem.y = problem.self ? problem.x : join_side(y.cast<py::tuple>(), "y", width);
  require(width == problem.width, "q of x and y must have the same columns, got ", problem.width, " and ",
          width);
  problem.scale = scale;
  problem.run = {threads, static_cast<VectorIsa>(isa)};
  return problem;
}

/// Rows that take part: distinct numbers in [0, n).
inline span<const int32_t> join_rows(const py::object& rows, const char* name, int64_t n) {
  const auto ids = view<int32_t>(rows, name);
  std::vector<bool> seen(static_cast<size_t>(n));
  for (const int32_t id : ids) {
    require(id >= 0 && id < n, name, " must be in [0, ", n, "), got ", id);
    require(!seen[static_cast<size_t>(id)], name, " must be different, got ", id, " twice");
    seen[static_cast<size_t>(id)] = true;
  }
  return ids;
}

inline py::dict join_counts(const JoinCounts& counts) {
  py::dict out;
  out["pairs"] = counts.pairs;
  out["passed_prefix"] = counts.passed_prefix;
  out["passed_rows"] = counts.passed_rows;
  out["evaluated"] = counts.evaluated;
  out["prefix_values"] = counts.prefix_values;
  return out;
}

}  // namespace obverse::python
