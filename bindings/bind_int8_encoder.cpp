#include <string>
#include <vector>

#include "array_view.hpp"
#include "bind.hpp"
#include "obverse/int8_encoder.hpp"

namespace obverse::python {
namespace {

/// A linear layer from a tuple (weight [outputs * inputs], bias [outputs], pre [inputs] or None).
Int8LinearInput linear(const py::handle& from) {
  const auto parts = from.cast<py::tuple>();
  require(parts.size() == 3, "a linear layer must be (weight, bias, pre), got ", parts.size(), " parts");
  return {view<float>(parts[0], "weight"), view<float>(parts[1], "bias"),
          optional_view<float>(parts[2], "pre")};
}

/// A layer from a tuple (qkv, attention_out, gamma, beta, inner, outer, gamma, beta).
Int8LayerInput layer(const py::handle& from) {
  const auto parts = from.cast<py::tuple>();
  require(parts.size() == 8, "a layer must have 8 parts, got ", parts.size());
  return {linear(parts[0]),
          linear(parts[1]),
          view<float>(parts[2], "attention_gamma"),
          view<float>(parts[3], "attention_beta"),
          linear(parts[4]),
          linear(parts[5]),
          view<float>(parts[6], "outer_gamma"),
          view<float>(parts[7], "outer_beta")};
}

Int8Encoder make(int64_t hidden, int64_t heads, float epsilon, const py::object& word,
                 const py::object& position, const py::object& gamma, const py::object& beta,
                 const py::list& layers) {
  std::vector<Int8LayerInput> inputs;
  for (const py::handle one : layers) inputs.push_back(layer(one));
  return {hidden,
          heads,
          epsilon,
          view<float>(word, "word"),
          view<float>(position, "position"),
          view<float>(gamma, "gamma"),
          view<float>(beta, "beta"),
          inputs};
}

py::array_t<float> encode(const Int8Encoder& encoder, const py::object& ids, const py::object& starts,
                          const std::string& pooling, int threads) {
  require(pooling == "mean" || pooling == "cls", "pooling must be 'mean' or 'cls', got '", pooling, "'");
  const auto tokens = view<int32_t>(ids, "ids");
  const auto offsets = view<int64_t>(starts, "starts");
  require(!offsets.empty(), "starts must have length n + 1 >= 1, got length 0");
  py::array_t<float> out(
      {static_cast<py::ssize_t>(offsets.size()) - 1, static_cast<py::ssize_t>(encoder.hidden())});
  const span<float> values(out.mutable_data(), static_cast<size_t>(out.size()));
  {
    const py::gil_scoped_release release;
    encoder.encode(tokens, offsets, pooling == "cls" ? Int8Pooling::kFirst : Int8Pooling::kMean, values,
                   threads);
  }
  return out;
}

}  // namespace

void bind_int8_encoder(py::module_& m) {
  m.def("int8_encoder_available", &int8_encoder_available);
  py::class_<Int8Encoder>(m, "Int8Encoder",
                          "A BERT-like encoder in 8-bit integers. See csrc/include/obverse/int8_encoder.hpp.")
      .def(py::init(&make), py::kw_only(), py::arg("hidden"), py::arg("heads"), py::arg("epsilon"),
           py::arg("word"), py::arg("position"), py::arg("gamma"), py::arg("beta"), py::arg("layers"))
      .def_property_readonly("hidden", &Int8Encoder::hidden)
      .def_property_readonly("positions", &Int8Encoder::positions)
      .def("encode", &encode, py::arg("ids"), py::arg("starts"), py::kw_only(), py::arg("pooling") = "mean",
           py::arg("threads") = 1);
}

}  // namespace obverse::python
