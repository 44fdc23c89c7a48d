#include "obverse/descent.hpp"

#include <cstring>
#include <numeric>

#include "descent_work.hpp"
#include "obverse/random.hpp"

namespace obverse {
namespace {

constexpr int64_t kRowsAStep = int64_t{1} << 16;

uint64_t hash_row(const int8_t* row, int32_t width) {
  uint64_t a = 0x9E3779B97F4A7C15ULL, b = 0xC2B2AE3D27D4EB4FULL;
  for (int32_t t = 0; t < width; t += 16) {
    uint64_t x, y;
    std::memcpy(&x, row + t, 8);
    std::memcpy(&y, row + t + 8, 8);
    a = (a ^ x) * 0xD6E8FEB86659FD93ULL;
    b = (b ^ y) * 0xA0761D6478BD642FULL;
    a ^= a >> 32;
    b ^= b >> 29;
  }
  return mix64(a ^ mix64(b));
}

DescentSettings checked(span<const int8_t> q, int64_t n, int32_t width, const DescentSettings& s) {
  require(n >= 0 && n < kDescentMaxRows, "n must be in [0, 2^30), got ", n);
  require(width >= 64 && width <= 65536 && width % 64 == 0,
          "width must be a multiple of 64 in [64, 65536], got ", width);
  require(static_cast<int64_t>(q.size()) == n * width, "q must have n * width = ", n * width, " bytes, got ",
          q.size());
  require(s.degree >= 8 && s.degree <= kDescentMaxDegree && s.degree % 8 == 0,
          "degree must be a multiple of 8 in [8, ", kDescentMaxDegree, "], got ", s.degree);
  require(s.leaf >= 32 && s.leaf <= 4096, "leaf must be in [32, 4096], got ", s.leaf);
  require(s.fanout >= 1 && s.fanout <= 4, "fanout must be in [1, 4], got ", s.fanout);
  require(s.carvings >= 1 && s.carvings <= 64, "carvings must be in [1, 64], got ", s.carvings);
  require(s.reverse >= 0 && s.reverse <= kDescentMaxDegree, "reverse must be in [0, ", kDescentMaxDegree,
          "], got ", s.reverse);
  require(s.rounds >= 0 && s.rounds <= 64, "rounds must be in [0, 64], got ", s.rounds);
  require(s.settled >= 0.0 && s.settled <= 1.0, "settled must be in [0, 1], got ", s.settled);
  require(s.delta >= 0.0 && s.delta <= 1.0, "delta must be in [0, 1], got ", s.delta);
  require(s.threads >= 1 && s.threads <= 1024, "threads must be in [1, 1024], got ", s.threads);
  return s;
}

}  // namespace

const DescentKernels& descent_kernels(VectorIsa bound) {
#if defined(OBVERSE_X86_64)
  switch (std::min(bound, best_vector_isa())) {
    case VectorIsa::kAvx512Vnni:
      return kDescentAvx512Vnni;
    case VectorIsa::kAvx2:
      return kDescentAvx2;
    default:
      return kDescentPortable;
  }
#else
  static_cast<void>(bound);
  return kDescentPortable;
#endif
}

EqualRows::EqualRows(span<const int8_t> q, int64_t n, int32_t width, int threads) {
  std::vector<uint64_t> hashes(static_cast<size_t>(n));
  parallel_for(threads, n, 4096, [&](int64_t first, int64_t last, int) {
    for (int64_t i = first; i < last; ++i)
      hashes[static_cast<size_t>(i)] = hash_row(q.data() + i * width, width);
  });
  uint64_t size = 16;
  while (size < 2 * static_cast<uint64_t>(n)) size *= 2;
  std::vector<int32_t> table(size, -1), last(static_cast<size_t>(n));
  first_.resize(static_cast<size_t>(n));
  next_.assign(static_cast<size_t>(n), -1);
  const auto equal = [&](int64_t i, int64_t j) {
    return hashes[static_cast<size_t>(i)] == hashes[static_cast<size_t>(j)] &&
           std::memcmp(q.data() + i * width, q.data() + j * width, static_cast<size_t>(width)) == 0;
  };
  for (int64_t i = 0; i < n; ++i) {
    uint64_t at = hashes[static_cast<size_t>(i)] & (size - 1);
    while (table[at] >= 0 && !equal(table[at], i)) at = (at + 1) & (size - 1);
    const auto row = static_cast<int32_t>(i);
    if (table[at] < 0) {
      table[at] = row;
      firsts_.push_back(row);
    } else {
      next_[static_cast<size_t>(last[static_cast<size_t>(table[at])])] = row;
    }
    first_[static_cast<size_t>(i)] = table[at];
    last[static_cast<size_t>(table[at])] = row;
  }
}

Descent::Work::Work(span<const int8_t> q, int64_t n, int32_t width, const DescentSettings& settings)
    : settings_(checked(q, n, width, settings)),
      n_(n),
      equal_(q, n, width, settings.threads),
      kernels_(descent_kernels(settings.isa)),
      sums_(n * 4),
      keys_(n * settings.degree * 8),
      thresholds_(n * 4),
      locks_(n),
      own_(static_cast<size_t>(settings.threads)) {
  rows_ = {q.data(),
           sums_.as<int32_t>(),
           keys_.as<int64_t>(),
           thresholds_.as<int32_t>(),
           locks_.as<uint8_t>(),
           width,
           width,
           settings.degree};
  front_ = rows_;
  front_.width = std::min(width, kFrontWidth);
  auto* const sums = sums_.as<int32_t>();
  parallel_for(settings.threads, n, 4096, [&](int64_t first, int64_t last, int) {
    for (int64_t i = first; i < last; ++i) {
      sums[i] = std::accumulate(q.data() + i * width, q.data() + (i + 1) * width, 0);
      rows_.thresholds[i] = INT32_MIN;
      rows_.locks[i] = 0;
      for (int e = 0; e < settings.degree; ++e) rows_.keys[i * settings.degree + e] = descent_no_key(e);
    }
  });
  if (distinct() < 2) part_ = Part::kDone;
}

void* Descent::Work::scratch(int thread, int32_t count) {
  Own& own = own_[static_cast<size_t>(thread)];
  const int64_t bytes = kernels_.scratch_bytes(rows_.width, count);
  if (own.scratch_bytes < bytes) {
    own.scratch = Memory(bytes);
    own.scratch_bytes = bytes;
  }
  return own.scratch.as<void>();
}

// What a thread inserted depends on the others; which entries a list ends up with does not.
int64_t Descent::Work::count_fresh() const {
  std::atomic<int64_t> sum{0};
  parallel_for(settings_.threads, n_ * rows_.degree, 1 << 16, [&](int64_t first, int64_t last, int) {
    int64_t count = 0;
    for (int64_t e = first; e < last; ++e)
      if (descent_dot(rows_.keys[e]) != INT32_MIN) count += (rows_.keys[e] & kDescentFresh) != 0;
    sum += count;
  });
  return sum;
}

void Descent::Work::mark_all(bool fresh) {
  parallel_for(settings_.threads, n_ * rows_.degree, 1 << 16, [&](int64_t first, int64_t last, int) {
    for (int64_t e = first; e < last; ++e) {
      const int64_t key = rows_.keys[e];
      if (descent_dot(key) != INT32_MIN) rows_.keys[e] = fresh ? key | kDescentFresh : key & ~kDescentFresh;
    }
  });
}

DescentProgress Descent::Work::progress(const char* part, int32_t number, double fraction) const {
  int64_t evaluated = 0;
  for (const Own& own : own_) evaluated += own.evaluated;
  return {part, number, fraction, evaluated, 0};
}

DescentProgress Descent::Work::step() {
  if (part_ == Part::kDone) return progress("done", number_, 1.0);
  if (part_ == Part::kLeaves) return step_leaves();
  if (at_ == 0)
    for (Own& own : own_) own.evaluated = 0;
  return part_ == Part::kChoose ? step_choose() : step_round();
}

DescentProgress Descent::Work::step_choose() {
  const int64_t rows = distinct(), last = std::min(rows, at_ + kRowsAStep);
  if (at_ == 0) begin_carving();
  choose(at_, last);
  at_ = last;
  const double done = static_cast<double>(at_) / static_cast<double>(rows);
  if (at_ == rows) {
    sort_by_leader();
    part_ = Part::kLeaves;
    at_ = 0;
  }
  return progress("carving", number_, done / 2);
}

DescentProgress Descent::Work::step_leaves() {
  // As many parts as hold the rows of a step.
  const auto& start = carving_.start;
  const auto first = static_cast<size_t>(at_);
  size_t last = first + 1;
  while (last + 1 < start.size() && start[last + 1] - start[first] <= 2 * kRowsAStep) ++last;
  join_parts(at_, static_cast<int64_t>(last));
  at_ = static_cast<int64_t>(last);
  const double done = static_cast<double>(at_) / static_cast<double>(carving_.parts);
  DescentProgress now = progress("carving", number_, 0.5 + done / 2);
  if (at_ == carving_.parts) {
    end_carving();
    now.updates = changed_;
  }
  return now;
}

DescentProgress Descent::Work::step_round() {
  const int64_t rows = distinct(), first = at_;
  if (first == 0 || first == stretch_last_) begin_stretch(first);
  const int64_t last = std::min(stretch_last_, first + kRowsAStep);
  parallel_pieces(settings_.threads, last - first, 256,
                  [&](int64_t from, int64_t to, int thread) { join_rows(first + from, first + to, thread); });
  at_ = last;
  DescentProgress now = progress("round", number_, static_cast<double>(at_) / static_cast<double>(rows));
  if (at_ == rows) {
    end_round();
    now.updates = changed_;
  }
  return now;
}

bool Descent::Work::settled(double share) const {
  return static_cast<double>(changed_) <= share * static_cast<double>(distinct()) * rows_.degree;
}

void Descent::Work::end_carving() {
  if (number_ == 0) keep_order();
  changed_ = count_fresh();
  mark_all(false);
  at_ = 0;
  ++number_;
  part_ = Part::kChoose;
  const bool whole = distinct() <= settings_.leaf;  // one leaf: every pair has been compared
  if (number_ < settings_.carvings && !whole && !settled(settings_.settled)) return;
  carving_ = {};
  leaders_ = {};
  mark_all(true);
  number_ = 0;
  part_ = settings_.rounds > 0 && !whole ? Part::kRound : Part::kDone;
}

void Descent::Work::end_round() {
  changed_ = count_fresh();
  at_ = 0;
  ++number_;
  if (number_ < settings_.rounds && !settled(settings_.delta)) return;
  forward_ = backward_ = {};
  place_ = {};
  part_ = Part::kDone;
}

void Descent::Work::candidates(int32_t m, span<int32_t> out) const {
  require(m >= 0 && static_cast<int64_t>(out.size()) == n_ * m, "out must have n * m = ", n_ * m,
          " places, got ", out.size());
  parallel_for(settings_.threads, n_, 1024, [&](int64_t first, int64_t last, int) {
    std::vector<int64_t> keys(static_cast<size_t>(rows_.degree));
    for (int64_t i = first; i < last; ++i) {
      int32_t* at = out.data() + i * m;
      int32_t* const end = at + m;
      const int32_t own = equal_.first(i);
      const auto take = [&](int32_t group) {
        for (int32_t row = group; row >= 0 && at != end; row = equal_.next(row))
          if (row != i) *at++ = row;
      };
      const int64_t* const list = rows_.keys + static_cast<int64_t>(own) * rows_.degree;
      std::copy(list, list + rows_.degree, keys.begin());
      std::sort(keys.begin(), keys.end(), std::greater<>());
      take(own);
      for (const int64_t key : keys) {
        if (at == end || descent_dot(key) == INT32_MIN) break;
        take(descent_id(key));
      }
      std::fill(at, end, -1);
    }
  });
}

int64_t Descent::Work::nbytes() const {
  return n_ * (rows_.degree * 8 + 29) + stretch_rows() * (rows_.degree + settings_.reverse) * 4;
}

Descent::Descent(span<const int8_t> q, int64_t n, int32_t width, const DescentSettings& settings)
    : work_(std::make_unique<Work>(q, n, width, settings)) {}
Descent::~Descent() = default;
DescentProgress Descent::step() { return work_->step(); }
void Descent::candidates(int32_t m, span<int32_t> out) const { work_->candidates(m, out); }
int64_t Descent::nbytes() const { return work_->nbytes(); }
int64_t Descent::distinct() const { return work_->distinct(); }
bool Descent::done() const { return work_->done(); }

}  // namespace obverse
