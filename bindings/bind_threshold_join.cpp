#include <algorithm>
#include <memory>

#include "bind.hpp"
#include "join_problem.hpp"

namespace obverse::python {
namespace {

template <typename T>
py::array_t<T> copied(const std::vector<T>& values) {
  return py::array_t<T>(static_cast<py::ssize_t>(values.size()), values.data());
}

/// The join with the arrays that it reads.
class BoundThreshold {
 public:
  BoundThreshold(py::tuple x, py::object y, double scale, const py::object& rows, const py::object& columns,
                 float threshold, int64_t most, int threads, int isa)
      : x_(std::move(x)), y_(std::move(y)) {
    const JoinProblem problem = join_problem(x_, y_, scale, threads, isa);
    join_ = std::make_unique<ThresholdJoin>(problem, join_rows(rows, "rows", problem.x.x.rows),
                                            join_rows(columns, "columns", problem.y.x.rows), threshold, most);
  }
  void step(int64_t index) {
    const py::gil_scoped_release release;
    join_->step(index);
  }
  int64_t steps() const { return join_->steps(); }
  int64_t total() const { return join_->total(); }
  py::tuple pairs() const {
    return py::make_tuple(copied(join_->rows()), copied(join_->columns()), copied(join_->similarities()));
  }
  /// The row that is in most pairs, and in how many.
  py::tuple fullest() const {
    const std::vector<int64_t>& counts = join_->by_row();
    const auto most = std::max_element(counts.begin(), counts.end());
    return py::make_tuple(most - counts.begin(), most == counts.end() ? 0 : *most);
  }
  py::dict counts() const { return join_counts(join_->counts()); }

 private:
  py::tuple x_;
  py::object y_;
  std::unique_ptr<ThresholdJoin> join_;
};

class BoundBalls {
 public:
  BoundBalls(py::tuple x, py::tuple y, double scale, const py::object& rows, const py::object& columns,
             py::tuple radii, py::tuple weights, int threads, int isa)
      : x_(std::move(x)), y_(std::move(y)), radii_(std::move(radii)), weights_(std::move(weights)) {
    const JoinProblem problem = join_problem(x_, y_, scale, threads, isa);
    require(radii_.size() == 2 && weights_.size() == 2, "radii and weights must be those of x and of y");
    const auto radius_x = view<float>(radii_[0], "radius_x"), radius_y = view<float>(radii_[1], "radius_y");
    const auto weight_x = view<int64_t>(weights_[0], "weight_x"),
               weight_y = view<int64_t>(weights_[1], "weight_y");
    const auto num_x = static_cast<size_t>(problem.x.x.rows), num_y = static_cast<size_t>(problem.y.x.rows);
    require(radius_x.size() == num_x && weight_x.size() == num_x && radius_y.size() == num_y &&
                weight_y.size() == num_y,
            "radii and weights must have one entry a row, ", num_x, " and ", num_y, ", got ", radius_x.size(),
            ", ", weight_x.size(), ", ", radius_y.size(), " and ", weight_y.size());
    join_ = std::make_unique<BallJoin>(
        problem, join_rows(rows, "rows", problem.x.x.rows), join_rows(columns, "columns", problem.y.x.rows),
        BallJoin::Balls{radius_x.data(), radius_y.data(), weight_x.data(), weight_y.data()});
  }
  void step(int64_t index) {
    const py::gil_scoped_release release;
    join_->step(index);
  }
  int64_t steps() const { return join_->steps(); }
  py::tuple balls() const {
    return py::make_tuple(copied(join_->inside_y()), copied(join_->inside_x()), copied(join_->reached_x()));
  }
  py::dict counts() const { return join_counts(join_->counts()); }

 private:
  py::tuple x_, y_, radii_, weights_;
  std::unique_ptr<BallJoin> join_;
};

}  // namespace

void bind_threshold_join(py::module_& m) {
  py::class_<BoundThreshold>(m, "ThresholdJoin", "All pairs of a cosine of at least a threshold.")
      .def(py::init<py::tuple, py::object, double, const py::object&, const py::object&, float, int64_t, int,
                    int>(),
           py::arg("x"), py::arg("y"), py::arg("scale"), py::arg("rows"), py::arg("columns"),
           py::arg("threshold"), py::arg("most"), py::arg("threads"), py::arg("isa"))
      .def("step", &BoundThreshold::step, py::arg("index"))
      .def_property_readonly("steps", &BoundThreshold::steps)
      .def_property_readonly("total", &BoundThreshold::total)
      .def("pairs", &BoundThreshold::pairs)
      .def("fullest", &BoundThreshold::fullest)
      .def_property_readonly("counts", &BoundThreshold::counts);
  py::class_<BoundBalls>(m, "BallJoin", "Counts of rows in balls around rows of the other side.")
      .def(py::init<py::tuple, py::tuple, double, const py::object&, const py::object&, py::tuple, py::tuple,
                    int, int>(),
           py::arg("x"), py::arg("y"), py::arg("scale"), py::arg("rows"), py::arg("columns"),
           py::arg("radii"), py::arg("weights"), py::arg("threads"), py::arg("isa"))
      .def("step", &BoundBalls::step, py::arg("index"))
      .def_property_readonly("steps", &BoundBalls::steps)
      .def("balls", &BoundBalls::balls)
      .def_property_readonly("counts", &BoundBalls::counts);
}

}  // namespace obverse::python
