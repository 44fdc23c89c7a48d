#include <memory>

#include "bind.hpp"
#include "join_problem.hpp"

namespace obverse::python {
namespace {

/// The join with the arrays that it reads.
class BoundTopK {
 public:
  BoundTopK(py::tuple x, py::object y, double scale, const py::object& rows, const py::object& columns,
            int64_t k, int threads, int isa)
      : x_(std::move(x)), y_(std::move(y)) {
    const JoinProblem problem = join_problem(x_, y_, scale, threads, isa);
    join_ = std::make_unique<TopKJoin>(problem, join_rows(rows, "rows", problem.x.x.rows),
                                       join_rows(columns, "columns", problem.y.x.rows), k);
    shape_ = {problem.x.x.rows, k};
  }
  void seed(const py::object& candidates) {
    const py::array array = checked_array<int32_t>(candidates, "candidates", 2);
    const auto flat = matrix_view<int32_t>(candidates, "candidates", static_cast<size_t>(array.shape(1)));
    const py::gil_scoped_release release;
    join_->seed(flat, array.shape(1));
  }
  void seed_by_trees(int64_t trees, int64_t rounds, uint64_t seed) {
    const py::gil_scoped_release release;
    join_->seed_by_trees(trees, rounds, seed);
  }
  void start() {
    const py::gil_scoped_release release;
    join_->start();
  }
  void step(int64_t index) {
    const py::gil_scoped_release release;
    join_->step(index);
  }
  int64_t steps() const { return join_->steps(); }
  void restore(const py::object& order, const py::object& indices, const py::object& similarities) {
    const auto k = static_cast<size_t>(shape_[1]);
    join_->restore(view<int32_t>(order, "order"), matrix_view<int32_t>(indices, "indices", k),
                   matrix_view<float>(similarities, "similarities", k));
  }
  /// Views into the join's own lists, which live as long as they are held.
  static py::array lists(const py::object& self) {
    auto& own = self.cast<BoundTopK&>();
    return py::array_t<int32_t>(own.shape_, own.join_->indices().data(), self);
  }
  static py::array values(const py::object& self) {
    auto& own = self.cast<BoundTopK&>();
    return py::array_t<float>(own.shape_, own.join_->similarities().data(), self);
  }
  py::array_t<int32_t> order() const {
    const auto order = join_->order();
    return py::array_t<int32_t>(static_cast<py::ssize_t>(order.size()), order.data());
  }
  py::dict counts() const { return join_counts(join_->counts()); }

 private:
  py::tuple x_;
  py::object y_;
  std::unique_ptr<TopKJoin> join_;
  std::vector<py::ssize_t> shape_;
};

py::tuple expanded(const py::object& first_x, const py::object& first_y, const py::object& indices,
                   const py::object& similarities, int64_t k, int threads) {
  const bool self = first_y.is_none();
  const EqualRows x{view<int64_t>(first_x, "first_x")};
  const EqualRows y = self ? x : EqualRows{view<int64_t>(first_y, "first_y")};
  const py::array lists = checked_array<int32_t>(indices, "indices", 2);
  const auto listed = static_cast<size_t>(lists.shape(1));
  const auto ids = matrix_view<int32_t>(indices, "indices", listed);
  const auto values = matrix_view<float>(similarities, "similarities", listed);
  require(ids.size() == x.first.size() * listed && values.size() == ids.size(),
          "indices and similarities must have one row a vector, ", x.first.size(), ", got ", lists.shape(0));
  py::array_t<int64_t> all({static_cast<py::ssize_t>(x.first.size()), static_cast<py::ssize_t>(k)});
  py::array_t<float> cosines({static_cast<py::ssize_t>(x.first.size()), static_cast<py::ssize_t>(k)});
  int64_t* const out = all.mutable_data();
  float* const out_values = cosines.mutable_data();
  {
    const py::gil_scoped_release release;
    expand_equal_rows(x, y, self, ids, values, static_cast<int64_t>(listed), k, out, out_values, threads);
  }
  return py::make_tuple(std::move(all), std::move(cosines));
}

}  // namespace

void bind_exact_join(py::module_& m) {
  m.def("expand_equal_rows", &expanded, py::arg("first_x"), py::arg("first_y"), py::arg("indices"),
        py::arg("similarities"), py::arg("k"), py::kw_only(), py::arg("threads") = 1);
  py::class_<BoundTopK>(m, "TopKJoin",
                        "The k nearest rows by exact cosine; see csrc/include/obverse/exact_join.hpp.")
      .def(py::init<py::tuple, py::object, double, const py::object&, const py::object&, int64_t, int, int>(),
           py::arg("x"), py::arg("y"), py::arg("scale"), py::arg("rows"), py::arg("columns"), py::arg("k"),
           py::arg("threads"), py::arg("isa"))
      .def("seed", &BoundTopK::seed, py::arg("candidates"))
      .def("seed_by_trees", &BoundTopK::seed_by_trees, py::arg("trees"), py::arg("rounds"), py::arg("seed"))
      .def("start", &BoundTopK::start)
      .def("step", &BoundTopK::step, py::arg("index"))
      .def("restore", &BoundTopK::restore, py::arg("order"), py::arg("indices"), py::arg("similarities"))
      .def_property_readonly("steps", &BoundTopK::steps)
      .def_property_readonly("indices", &BoundTopK::lists)
      .def_property_readonly("similarities", &BoundTopK::values)
      .def_property_readonly("order", &BoundTopK::order)
      .def_property_readonly("counts", &BoundTopK::counts);
}

}  // namespace obverse::python
