// Views over memory that someone else owns.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "obverse/error.hpp"

namespace obverse {

using std::span;

/// A list of lists as one flat array and n + 1 offsets: row i is flat[offsets[i] .. offsets[i + 1]).
template <typename T>
class Ragged {
 public:
  /// Throws ValueError unless offsets start at 0, never fall, and end at flat.size().
  Ragged(span<const T> flat, span<const int64_t> offsets) : flat_(flat), offsets_(offsets) {
    require(!offsets.empty(), "offsets must have length n + 1 >= 1, got length 0");
    require(offsets.front() == 0, "offsets[0] must be 0, got ", offsets.front());
    for (size_t i = 1; i < offsets.size(); ++i) {
      require(offsets[i] >= offsets[i - 1], "offsets must never fall, got offsets[", i, "] = ", offsets[i],
              " after ", offsets[i - 1]);
    }
    require(static_cast<size_t>(offsets.back()) == flat.size(),
            "offsets must end at the flat array's length ", flat.size(), ", got ", offsets.back());
  }

  size_t size() const { return offsets_.size() - 1; }
  span<const T> operator[](size_t i) const {
    return flat_.subspan(static_cast<size_t>(offsets_[i]),
                         static_cast<size_t>(offsets_[i + 1] - offsets_[i]));
  }
  span<const T> flat() const { return flat_; }

 private:
  span<const T> flat_;
  span<const int64_t> offsets_;
};

}  // namespace obverse
