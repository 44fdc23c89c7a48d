// Lists of str as views of their UTF-8 bytes; nothing is copied.
#pragma once

#include <pybind11/pybind11.h>

#include <string>
#include <string_view>
#include <vector>

#include "obverse/error.hpp"

namespace obverse::python {

/// UTF-8 views of a list of str, and the tuple that keeps every string alive whatever happens to the list.
class TextViews {
 public:
  explicit TextViews(const pybind11::list& texts)
      : kept_(pybind11::reinterpret_steal<pybind11::tuple>(PyList_AsTuple(texts.ptr()))) {
    views_.reserve(kept_.size());
    for (const pybind11::handle text : kept_) {
      require(PyUnicode_Check(text.ptr()), "texts[", views_.size(), "] must be a str, got ",
              pybind11::str(pybind11::type::of(text).attr("__name__")).cast<std::string>());
      Py_ssize_t size = 0;
      const char* const data = PyUnicode_AsUTF8AndSize(text.ptr(), &size);
      if (data == nullptr) throw pybind11::error_already_set();
      views_.emplace_back(data, static_cast<size_t>(size));
    }
  }
  const std::vector<std::string_view>& views() const { return views_; }

 private:
  pybind11::tuple kept_;
  std::vector<std::string_view> views_;
};

}  // namespace obverse::python
