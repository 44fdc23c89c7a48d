#include "obverse/batch.hpp"

#include <algorithm>
#include <limits>

namespace obverse {
namespace {

/// Keeps `allowed` of a row: on a row of V floats this writes V + 2 |allowed| and never builds a mask.
void keep_only(span<const int32_t> allowed, span<float> row, std::vector<float>* kept) {
  kept->clear();
  for (const int32_t token : allowed) kept->push_back(row[static_cast<size_t>(token)]);
  std::fill(row.begin(), row.end(), -std::numeric_limits<float>::infinity());
  for (size_t i = 0; i < allowed.size(); ++i) row[static_cast<size_t>(allowed[i])] = (*kept)[i];
}

}  // namespace

TokenLists allowed_batch(const Constraint& constraint, const Ragged<int32_t>& rows) {
  TokenLists out;
  out.offsets.reserve(rows.size() + 1);
  for (size_t i = 0; i < rows.size(); ++i) {
    constraint.append_allowed(constraint.replay(rows[i]), &out.tokens);
    out.offsets.push_back(static_cast<int64_t>(out.tokens.size()));
  }
  return out;
}

void mask_logits(const Constraint& constraint, span<const Matcher* const> matchers, const LogitRows& logits) {
  require(matchers.size() == logits.num_rows, "expected one matcher a row of logits, ", logits.num_rows,
          ", got ", matchers.size());
  require(logits.num_columns >= constraint.vocab_size(),
          "logits must have at least vocab_size = ", constraint.vocab_size(), " columns, got ",
          logits.num_columns);
  for (size_t i = 0; i < matchers.size(); ++i) {
    require(matchers[i]->constraint().get() == &constraint, "matchers[", i,
            "] belongs to another constraint");
  }
  std::vector<int32_t> allowed;
  std::vector<float> kept;
  for (size_t i = 0; i < matchers.size(); ++i) {
    allowed.clear();
    matchers[i]->append_allowed(&allowed);
    if (allowed.empty()) allowed.push_back(static_cast<int32_t>(constraint.eos()));
    keep_only(allowed, {logits.data + i * logits.row_stride, logits.num_columns}, &kept);
  }
}

}  // namespace obverse
