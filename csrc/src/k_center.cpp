#include "obverse/k_center.hpp"

#include <algorithm>

namespace obverse {
namespace {

// Rows compared with a centre in one call: bounds the scratch, and is enough work for a thread.
constexpr int64_t kBlock = 1 << 16;

Vectors slice(const Vectors& x, int64_t first, int64_t rows) {
  const int64_t value_bytes = x.dtype == VectorDtype::kFloat16 ? 2 : 4;
  return {static_cast<const uint8_t*>(x.data) + first * x.columns * value_bytes, x.dtype, rows, x.columns};
}

}  // namespace

VectorCenters::VectorCenters(const Vectors& x, int64_t first, const VectorRun& run)
    : x_(x), run_(run), next_(first) {
  require(x.rows == 0 || (first >= 0 && first < x.rows), "first must be a row below ", x.rows, ", got ",
          first);
  if (x.rows == 0) next_ = -1;
  norms_.resize(static_cast<size_t>(x.rows));
  const int64_t bad = vector_norms(x, norms_.data(), run);
  require(bad < 0, "x must have finite rows that are not all zero, got row ", bad);
  nearest_.assign(norms_.size(), -2.0F);
  chosen_.assign(norms_.size(), 0);
}

void VectorCenters::choose(int64_t count, std::vector<int64_t>* rows, std::vector<float>* similarities) {
  for (int64_t taken = 0; taken < count && next_ >= 0; ++taken) {
    const auto row = static_cast<size_t>(next_);
    rows->push_back(next_);
    similarities->push_back(std::max(nearest_[row], -1.0F));
    chosen_[row] = 1;
    cover(next_);
    next_ = -1;
    float least = 2.0F;
    for (size_t r = 0; r < nearest_.size(); ++r) {
      if (chosen_[r] == 0 && nearest_[r] < least) {
        least = nearest_[r];
        next_ = static_cast<int64_t>(r);
      }
    }
  }
}

void VectorCenters::cover(int64_t center) {
  // One candidate a row: its cosine with the centre, the same number as in every join.
  const Vectors y = slice(x_, center, 1);
  const auto size = static_cast<size_t>(std::min(kBlock, x_.rows));
  const std::vector<int32_t> candidates(size, 0);
  std::vector<int32_t> found(size);
  std::vector<float> cosines(size);
  for (int64_t first = 0; first < x_.rows; first += kBlock) {
    const int64_t rows = std::min(kBlock, x_.rows - first);
    rank_candidates(slice(x_, first, rows), norms_.data() + first, y, norms_.data() + center,
                    candidates.data(), 1, false, 1, found.data(), cosines.data(), run_);
    for (int64_t r = 0; r < rows; ++r) {
      float& nearest = nearest_[static_cast<size_t>(first + r)];
      nearest = std::max(nearest, cosines[static_cast<size_t>(r)]);
    }
  }
  nearest_[static_cast<size_t>(center)] = 1.0F;
}

float VectorCenters::least_similarity() const {
  return nearest_.empty() ? 1.0F : *std::min_element(nearest_.begin(), nearest_.end());
}

}  // namespace obverse
