// Drives the fused linear layer: chunks of counted rows, shares of the vocabulary, and what joins them.
//
// A chunk: pack its hidden rows; logits and row sums, each thread over its share of the vocabulary; join the
// sums and finish the rows; gradients, over the same shares; join the hidden gradient. Sums are joined in the
// order of the threads, so that timing never changes a result; their number does, in the last bits.
#include "obverse/linear_ce.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "ce_kernels.hpp"
#include "linear_ce_plan.hpp"
#include "memory.hpp"
#include "parallel.hpp"

namespace obverse {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kLowest = std::numeric_limits<float>::lowest();

uint16_t to_bfloat16(float x) {
  uint32_t bits = 0;
  std::memcpy(&bits, &x, sizeof bits);
  if (std::isnan(x)) return static_cast<uint16_t>(bits >> 16 | 0x40U);
  return static_cast<uint16_t>((bits + 0x7fffU + (bits >> 16 & 1U)) >> 16);
}

/// The whole of one call's state.
class Runner {
 public:
  Runner(const LinearCeCall& call, const CeRun& run);
  void run();

 private:
  void allocate();
  void open_chunk(int64_t first, int64_t last);
  void logits_and_sums();
  void join_sums(int64_t first, int64_t last);
  double spread_of(int64_t r, double z_y) const;
  void finish_rows();
  void scale_rows();
  void differentiate();
  void clear_gradients();
  void write_bias_gradient() const;

  const LinearCeCall& call_;
  std::vector<int64_t> counted_;
  LinearCePlan plan_;
  CeJob job_;
  const CeKernels* rows_kernels_;
  LinearCeChunk chunk_;
  int64_t chunk_first_ = 0, next_row_ = 0, finish_first_ = 0;
  std::vector<Memory> memory_;
  std::vector<LinearCeThread> threads_;
  std::vector<double> class_total_;  // a thread's share of C
  std::vector<const void*> hidden_;
  std::vector<void*> hidden_gradient_;
  std::vector<int32_t> target_;
  std::vector<float> top_, scale_, share_, at_target_, bias_sums_;
  std::vector<float> row_top_, row_others_, row_z_y_, row_spread_;  // [N], for `finish`
};

std::vector<int64_t> counted_rows(const LinearCeCall& call) {
  std::vector<int64_t> rows;
  rows.reserve(static_cast<size_t>(call.n()));
  for (int64_t i = 0; i < call.n(); ++i)
    if (call.in.target[i] != call.rule.ignore_index) rows.push_back(i);
  return rows;
}

Runner::Runner(const LinearCeCall& call, const CeRun& run)
    : call_(call),
      counted_(counted_rows(call)),
      plan_(make_linear_ce_plan(call, run, static_cast<int64_t>(counted_.size()))) {
  job_.logits = {nullptr, CeDtype::kFloat32, call.n(), call.vocab(), call.vocab()};
  job_.in = call.in;
  job_.rule = call.rule;
  job_.out = call.out;
  double total = static_cast<double>(call.vocab());
  if (call.in.class_weight != nullptr) {
    total = 0.0;
    for (int64_t v = 0; v < call.vocab(); ++v) total += static_cast<double>(call.in.class_weight[v]);
  }
  job_.class_total = static_cast<float>(total);
  rows_kernels_ = &ce_kernels(run.isa);
  const auto n = static_cast<size_t>(call.n());
  for (std::vector<float>* row : {&row_top_, &row_others_, &row_z_y_, &row_spread_}) row->assign(n, 0.0F);
  const LinearCe& problem = call.problem;
  chunk_.head = problem.head.data;
  chunk_.bias = problem.bias;
  chunk_.head_stride = problem.head.row_stride;
  chunk_.vocab = call.vocab();
  chunk_.depth = call.depth();
  chunk_.block = plan_.block;
  chunk_.class_weight = call.in.class_weight;
  chunk_.spread = call.rule.smoothing > 0.0F;
  if (!counted_.empty()) allocate();
}

void Runner::allocate() {
  const auto take = [this](int64_t bytes) { return memory_.emplace_back(bytes).template as<float>(); };
  const int64_t rows = plan_.rows, panel = plan_.kernels.panel;
  const auto padded = static_cast<size_t>(rows);
  for (std::vector<float>* row : {&top_, &scale_, &share_, &at_target_}) row->resize(padded);
  target_.resize(padded);
  hidden_.resize(padded);
  hidden_gradient_.resize(padded);
  class_total_.resize(static_cast<size_t>(plan_.threads));
  threads_.resize(static_cast<size_t>(plan_.threads));
  chunk_.x_columns = take(4 * rows * plan_.deep);
  if (plan_.train) {
    chunk_.kept = take(plan_.kept_bytes * plan_.blocks * plan_.block * rows);
    chunk_.kept_tops = take(4 * plan_.blocks * rows);
  }
  const LinearCeGradients& gradients = call_.gradients;
  if (gradients.head != nullptr) chunk_.x_rows = take(4 * plan_.packed(rows));
  if (gradients.head != nullptr && call_.bfloat16() && static_cast<int64_t>(counted_.size()) > rows)
    chunk_.head_low = reinterpret_cast<uint8_t*>(take(ceil_div(call_.vocab(), 2) * call_.depth()));
  if (gradients.bias != nullptr) {
    bias_sums_.assign(static_cast<size_t>(call_.vocab()), 0.0F);
    chunk_.bias_sums = bias_sums_.data();
  }
  const bool in_place = call_.bfloat16() ? plan_.kernels.pairs && call_.depth() % 2 == 0 : true;
  for (LinearCeThread& own : threads_) {
    LinearCeSums& s = own.sums;
    for (float** row : {&s.top, &s.sum, &s.sum_rest, &s.dot, &s.dot_rest, &s.pivot, &s.z_y})
      *row = take(4 * rows);
    own.tile = take(4 * plan_.block * panel);
    if (!in_place) own.head_block = take(4 * plan_.block * plan_.deep);
    if (!plan_.train) continue;
    if (plan_.kernels.pairs) own.gradient = take(2 * plan_.block * rows);
    if (gradients.hidden == nullptr) continue;
    own.head_pack = take(4 * plan_.packed(plan_.block));
    own.hidden_sums = take(4 * plan_.deep_panels * rows * panel);
  }
}

/// Takes the counted rows [first, last) as the chunk, and packs them.
void Runner::open_chunk(int64_t first, int64_t last) {
  const int64_t panel = plan_.kernels.panel, size = call_.element();
  chunk_first_ = first;
  finish_first_ = next_row_;
  next_row_ = last < static_cast<int64_t>(counted_.size()) ? counted_[static_cast<size_t>(last)] : call_.n();
  chunk_.rows = last - first;
  chunk_.padded_rows = ceil_div(chunk_.rows, panel) * panel;
  chunk_.first = first == 0;
  chunk_.last = last == static_cast<int64_t>(counted_.size());
  std::fill(target_.begin(), target_.end(), -1);
  for (int64_t r = 0; r < chunk_.rows; ++r) {
    const int64_t row = counted_[static_cast<size_t>(first + r)], y = call_.in.target[row];
    const auto at_r = static_cast<size_t>(r);
    if (y >= 0 && y < call_.vocab()) target_[at_r] = static_cast<int32_t>(y);
    hidden_[at_r] =
        static_cast<const char*>(call_.problem.hidden.data) + row * call_.problem.hidden.row_stride * size;
    if (call_.gradients.hidden != nullptr)
      hidden_gradient_[at_r] = static_cast<char*>(call_.gradients.hidden) + row * call_.depth() * size;
  }
  chunk_.hidden = hidden_.data();
  chunk_.target = target_.data();
  parallel_for(plan_.threads, chunk_.padded_rows / panel, 1,
               [this](int64_t from, int64_t to, int) { plan_.kernels.pack(chunk_, from, to); });
}

void Runner::logits_and_sums() {
  for (const LinearCeThread& own : threads_) {
    const LinearCeSums& s = own.sums;
    for (float* zeros : {s.sum, s.sum_rest, s.dot, s.dot_rest, s.pivot}) std::fill_n(zeros, plan_.rows, 0.0F);
    std::fill_n(s.top, plan_.rows, kLowest);
    std::fill_n(s.z_y, plan_.rows, kNan);
  }
  std::fill(class_total_.begin(), class_total_.end(), 0.0);
  parallel_for(plan_.threads, plan_.blocks, 1, [this](int64_t first, int64_t last, int thread) {
    const auto t = static_cast<size_t>(thread);
    plan_.kernels.forward(chunk_, threads_[t], first, last);
    if (!chunk_.spread) return;
    const int64_t v0 = first * plan_.block, v1 = std::min(last * plan_.block, call_.vocab());
    class_total_[t] = static_cast<double>(v1 - v0);
    if (chunk_.class_weight == nullptr) return;
    class_total_[t] = 0.0;
    for (int64_t v = v0; v < v1; ++v) class_total_[t] += static_cast<double>(chunk_.class_weight[v]);
  });
}

/// Sum over j != y of c_j (z_j - z_y) for row r of the chunk.
double Runner::spread_of(int64_t r, double z_y) const {
  double spread = 0.0;
  for (size_t t = 0; t < threads_.size(); ++t) {
    const LinearCeSums& s = threads_[t].sums;
    double total = class_total_[t];
    if (!std::isnan(s.z_y[r]))
      total -=
          chunk_.class_weight != nullptr ? static_cast<double>(chunk_.class_weight[chunk_.target[r]]) : 1.0;
    if (total == 0.0) continue;
    spread += static_cast<double>(s.dot[r]) - static_cast<double>(s.dot_rest[r]) +
              total * (static_cast<double>(s.pivot[r]) - z_y);
  }
  return spread;
}

/// The threads' sums of the chunk's rows [first, last) into the rows' own.
void Runner::join_sums(int64_t first, int64_t last) {
  for (int64_t r = first; r < last; ++r) {
    double top = -std::numeric_limits<double>::infinity(), z_y = static_cast<double>(kNan), others = 0.0;
    for (const LinearCeThread& own : threads_) {
      if (own.sums.sum[r] != 0.0F) top = std::max(top, static_cast<double>(own.sums.top[r]));
      if (!std::isnan(own.sums.z_y[r])) z_y = static_cast<double>(own.sums.z_y[r]);
    }
    if (z_y > top) top = z_y;
    for (const LinearCeThread& own : threads_) {
      const LinearCeSums& s = own.sums;
      if (s.sum[r] == 0.0F) continue;
      others += (static_cast<double>(s.sum[r]) - static_cast<double>(s.sum_rest[r])) *
                std::exp(static_cast<double>(s.top[r]) - top);
    }
    const auto row = static_cast<size_t>(counted_[static_cast<size_t>(chunk_first_ + r)]);
    row_top_[row] = static_cast<float>(top);
    row_others_[row] = static_cast<float>(others);
    row_z_y_[row] = static_cast<float>(z_y);
    if (chunk_.spread) row_spread_[row] = static_cast<float>(spread_of(r, z_y));
  }
}

/// The fields of every row up to the next chunk's first: the ignored ones between are finished too.
void Runner::finish_rows() {
  parallel_for(plan_.threads, chunk_.rows, 64,
               [this](int64_t first, int64_t last, int) { join_sums(first, last); });
  const int64_t offset = finish_first_;
  parallel_for(plan_.threads, next_row_ - offset, 4096, [this, offset](int64_t first, int64_t last, int) {
    const int64_t from = offset + first;
    const CeRowSums sums{row_top_.data() + from, row_others_.data() + from, row_z_y_.data() + from,
                         row_spread_.data() + from};
    rows_kernels_->finish(job_, sums, from, offset + last);
  });
}

/// What the gradient needs of each row. Padding adds nothing, whatever its logits: its exponentials are 0.
void Runner::scale_rows() {
  std::fill(top_.begin(), top_.end(), std::numeric_limits<float>::max());
  for (std::vector<float>* row : {&scale_, &share_, &at_target_}) std::fill(row->begin(), row->end(), 0.0F);
  const int64_t n = call_.n();
  const auto field = [&](CeField which, int64_t row) { return call_.out.fields[which * n + row]; };
  const double each = static_cast<double>(call_.rule.smoothing) / static_cast<double>(call_.vocab());
  for (int64_t r = 0; r < chunk_.rows; ++r) {
    const int64_t row = counted_[static_cast<size_t>(chunk_first_ + r)];
    const auto at_r = static_cast<size_t>(r);
    const double g = static_cast<double>(call_.upstream.data[row * call_.upstream.stride]);
    top_[at_r] = field(kTop, row);
    scale_[at_r] = static_cast<float>(g * static_cast<double>(field(kA, row)) *
                                      std::exp(-static_cast<double>(field(kLogSum, row))));
    share_[at_r] = each > 0.0 ? static_cast<float>(g * static_cast<double>(field(kW, row)) * each) : 0.0F;
    at_target_[at_r] = static_cast<float>(g * static_cast<double>(field(kT, row)));
  }
  chunk_.top = top_.data();
  chunk_.scale = scale_.data();
  chunk_.share = share_.data();
  chunk_.at_target = at_target_.data();
}

void Runner::differentiate() {
  chunk_.head_gradient = call_.gradients.head;
  chunk_.hidden_gradient = call_.gradients.hidden != nullptr ? hidden_gradient_.data() : nullptr;
  parallel_for(plan_.threads, plan_.blocks, 1, [this](int64_t first, int64_t last, int thread) {
    plan_.kernels.backward(chunk_, threads_[static_cast<size_t>(thread)], first, last);
  });
  if (chunk_.hidden_gradient == nullptr) return;
  const int shares = static_cast<int>(std::min<int64_t>(plan_.threads, plan_.blocks));
  parallel_for(plan_.threads, chunk_.rows, 16, [this, shares](int64_t first, int64_t last, int) {
    plan_.kernels.join(chunk_, threads_.data(), shares, first, last);
  });
}

/// Zeros where no chunk writes: ignored rows, and everything where no row counts.
void Runner::clear_gradients() {
  const LinearCeGradients& gradients = call_.gradients;
  const auto row = static_cast<size_t>(call_.depth() * call_.element());
  if (gradients.hidden != nullptr)
    for (int64_t i = 0; i < call_.n(); ++i)
      if (call_.in.target[i] == call_.rule.ignore_index)
        std::memset(static_cast<char*>(gradients.hidden) + static_cast<size_t>(i) * row, 0, row);
  if (!counted_.empty()) return;
  if (gradients.head != nullptr) std::memset(gradients.head, 0, static_cast<size_t>(call_.vocab()) * row);
  if (gradients.bias != nullptr)
    std::memset(gradients.bias, 0, static_cast<size_t>(call_.vocab() * call_.element()));
}

void Runner::write_bias_gradient() const {
  for (int64_t v = 0; v < call_.vocab(); ++v) {
    const float sum = bias_sums_[static_cast<size_t>(v)];
    if (call_.bfloat16())
      static_cast<uint16_t*>(call_.gradients.bias)[v] = to_bfloat16(sum);
    else
      static_cast<float*>(call_.gradients.bias)[v] = sum;
  }
}

void Runner::run() {
  clear_gradients();
  const auto counted = static_cast<int64_t>(counted_.size());
  if (counted == 0) {
    const CeRowSums sums{row_top_.data(), row_others_.data(), row_z_y_.data(), row_spread_.data()};
    rows_kernels_->finish(job_, sums, 0, call_.n());
    return;
  }
  for (int64_t first = 0; first < counted; first += plan_.rows) {
    open_chunk(first, std::min(first + plan_.rows, counted));
    logits_and_sums();
    finish_rows();
    if (!plan_.train) continue;
    scale_rows();
    differentiate();
  }
  if (call_.gradients.bias != nullptr) write_bias_gradient();
}

}  // namespace

void linear_ce(const LinearCe& problem, const CeInputs& in, const CeRule& rule, const CeUpstream& upstream,
               const CeOutputs& out, const LinearCeGradients& gradients, const CeRun& run) {
  const LinearCeCall call{problem, in, rule, upstream, out, gradients};
  Runner(call, run).run();
}

}  // namespace obverse
