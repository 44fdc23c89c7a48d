// The weighted cross-entropy by addresses: kernels/native_ce.py, its one caller, has made every check.
#include <string>

#include "bind.hpp"
#include "obverse/linear_ce.hpp"
#include "obverse/weighted_ce.hpp"

namespace obverse::python {
namespace {

namespace py = pybind11;

/// Positional arguments taken one after the other: so many of them would not fit a readable signature.
class Arguments {
 public:
  Arguments(const py::args& all, size_t count) : all_(all) {
    if (all.size() == count) return;
    throw py::type_error("expected " + std::to_string(count) + " positional arguments, got " +
                         std::to_string(all.size()));
  }
  template <typename T>
  T next() {
    return py::handle(PyTuple_GET_ITEM(all_.ptr(), next_++)).cast<T>();
  }
  /// An address given as a number, 0 for none.
  template <typename T>
  T* address() {
    return reinterpret_cast<T*>(next<std::uintptr_t>());
  }

 private:
  const py::args& all_;
  py::ssize_t next_ = 0;
};

// A braced list is evaluated from left to right, as the arguments come.

CeMatrix next_logits(Arguments& from) {
  const auto* const data = from.address<const void>();
  const auto dtype = static_cast<CeDtype>(from.next<int>());
  return {data, dtype, from.next<int64_t>(), from.next<int64_t>(), from.next<int64_t>()};
}

CeInputs next_inputs(Arguments& from, const CeMatrix& logits) {
  CeInputs in{from.address<const int64_t>(), from.address<const float>(), from.address<const float>(),
              from.address<const float>(),   from.address<const float>(), {}};
  const auto* const soft = from.address<const void>();
  const auto dtype = static_cast<CeDtype>(from.next<int>());
  in.soft_target = {soft, dtype, logits.rows, logits.columns, from.next<int64_t>()};
  return in;
}

CeRule next_rule(Arguments& from) {
  const auto given = from.next<py::tuple>();
  return {static_cast<CeScheme>(given[0].cast<int>()),
          given[1].cast<bool>(),
          given[2].cast<float>(),
          given[3].cast<float>(),
          given[4].cast<float>(),
          given[5].cast<float>(),
          given[6].cast<float>(),
          given[7].cast<int64_t>()};
}

CeRun next_run(Arguments& from) { return {from.next<int>(), static_cast<Isa>(from.next<int>())}; }

void forward(const py::args& all) {
  Arguments from(all, 18);
  const CeMatrix logits = next_logits(from);
  const CeInputs in = next_inputs(from, logits);
  const CeRule rule = next_rule(from);
  const CeOutputs out{from.address<float>(), from.address<int8_t>()};
  const CeRun run = next_run(from);
  const py::gil_scoped_release release;
  ce_forward(logits, in, rule, out, run);
}

void backward(const py::args& all) {
  Arguments from(all, 21);
  const CeMatrix logits = next_logits(from);
  const CeInputs in = next_inputs(from, logits);
  const CeRule rule = next_rule(from);
  const auto* const fields = from.address<const float>();
  const CeUpstream upstream{from.address<const float>(), from.next<int64_t>()};
  auto* const gradient = from.address<void>();
  const auto gradient_stride = from.next<int64_t>();
  const CeRun run = next_run(from);
  const py::gil_scoped_release release;
  ce_backward(logits, in, rule, fields, upstream, gradient, gradient_stride, run);
}

void fused(const py::args& all) {
  Arguments from(all, 22);
  const CeMatrix logits = next_logits(from);
  const CeInputs in = next_inputs(from, logits);
  const CeRule rule = next_rule(from);
  const CeUpstream upstream{from.address<const float>(), from.next<int64_t>()};
  const CeOutputs out{from.address<float>(), from.address<int8_t>()};
  auto* const gradient = from.address<void>();
  const auto gradient_stride = from.next<int64_t>();
  const CeRun run = next_run(from);
  const py::gil_scoped_release release;
  ce_fused(logits, in, rule, upstream, out, gradient, gradient_stride, run);
}

void linear(const py::args& all) {
  Arguments from(all, 24);
  LinearCe problem;
  problem.hidden = next_logits(from);
  problem.head = {from.address<const void>(), problem.hidden.dtype, from.next<int64_t>(),
                  problem.hidden.columns, from.next<int64_t>()};
  problem.bias = from.address<const void>();
  const CeInputs in{from.address<const int64_t>(), from.address<const float>(), from.address<const float>(),
                    from.address<const float>(),   from.address<const float>(), {}};
  const CeRule rule = next_rule(from);
  const CeUpstream upstream{from.address<const float>(), from.next<int64_t>()};
  const CeOutputs out{from.address<float>(), from.address<int8_t>()};
  const LinearCeGradients gradients{from.address<void>(), from.address<void>(), from.address<void>()};
  const CeRun run = next_run(from);
  const py::gil_scoped_release release;
  linear_ce(problem, in, rule, upstream, out, gradients, run);
}

bool linear_is_fast(int dtype, int isa) {
  return linear_ce_is_fast(static_cast<CeDtype>(dtype), static_cast<Isa>(isa));
}

}  // namespace

void bind_weighted_ce(py::module_& m) {
  m.def("best_isa", [] { return static_cast<int>(best_isa()); });
  m.def("ce_forward", &forward);
  m.def("ce_backward", &backward);
  m.def("ce_fused", &fused);
  m.def("ce_count", [](uintptr_t target, int64_t rows, int64_t ignore_index) {
    return ce_count(reinterpret_cast<const int64_t*>(target), rows, ignore_index);
  });
  m.def("ce_sum", [](uintptr_t figures, int64_t count) {
    return ce_sum(reinterpret_cast<const float*>(figures), count);
  });
  m.def("linear_ce", &linear);
  m.def("linear_ce_is_fast", &linear_is_fast);
}

}  // namespace obverse::python
