#include "descent_work.hpp"
#include "obverse/random.hpp"

namespace obverse {
namespace {

constexpr int64_t kStretches = 8;
constexpr int64_t kWholeRounds = int64_t{1} << 18;  // rows; below, memory is no concern

/// Which rows a full list of reverse neighbours keeps: new ones first, then by a hash of both ids.
uint32_t precedence(int32_t row, uint32_t entry) {
  const auto hash = static_cast<uint32_t>(mix64(static_cast<uint64_t>(row) << 32 | entry >> 1));
  return (entry & 1) != 0 ? hash >> 1 : hash >> 1 | 0x80000000U;
}

}  // namespace

/// Ids, each once, in the order they come.
class Once {
 public:
  /// For at most `most` ids.
  explicit Once(int32_t most) {
    while ((uint32_t{1} << bits_) < 4 * static_cast<uint32_t>(most)) ++bits_;
    table_.resize(size_t{1} << bits_);
  }
  void clear() { std::fill(table_.begin(), table_.end(), -1); }
  /// Whether `id` is seen for the first time since the last `clear`.
  bool add(int32_t id) {
    const auto last = static_cast<uint32_t>(table_.size() - 1);
    for (uint32_t at = static_cast<uint32_t>(id) * 0x9E3779B1U >> (32 - bits_);; at = (at + 1) & last) {
      if (table_[at] == id) return false;
      if (table_[at] < 0) {
        table_[at] = id;
        return true;
      }
    }
  }

 private:
  uint32_t bits_ = 4;
  std::vector<int32_t> table_;
};

int64_t Descent::Work::stretch_rows() const {
  return distinct() < kWholeRounds ? distinct() : (distinct() + kStretches - 1) / kStretches;
}

void Descent::Work::begin_stretch(int64_t first) {
  const int64_t most = stretch_rows(), per_row = settings_.reverse;
  if (place_.empty()) {
    place_.assign(static_cast<size_t>(n_), -1);
    for (size_t i = 0; i < order_.size(); ++i)
      place_[static_cast<size_t>(order_[i])] = static_cast<int32_t>(i);
    forward_ = Memory(most * rows_.degree * 4);
    backward_ = Memory(most * per_row * 4);
  }
  stretch_first_ = first;
  stretch_last_ = std::min(distinct(), first + most);
  auto* const backward = backward_.as<uint32_t>();
  parallel_for(settings_.threads, most * per_row, 1 << 16,
               [&](int64_t from, int64_t to, int) { std::fill(backward + from, backward + to, kNobody); });
  // Two sweeps: thresholds and lists must not change while they are read, and they don't, for nothing is compared.
  parallel_pieces(settings_.threads, static_cast<int64_t>(order_.size()), 1024,
                  [&](int64_t from, int64_t to, int) { snapshot(from, to); });
}

// Of every row's list: the stretch's own, and the entries that name a row of the stretch.
void Descent::Work::snapshot(int64_t first, int64_t last) {
  const int64_t from = stretch_first_, to = stretch_last_;
  for (int64_t i = first; i < last; ++i) {
    const int32_t row = order_[static_cast<size_t>(i)];
    int64_t* const keys = rows_.keys + static_cast<int64_t>(row) * rows_.degree;
    const bool own = i >= from && i < to;
    uint32_t* out = own ? forward_.as<uint32_t>() + (i - from) * rows_.degree : nullptr;
    uint32_t* const end = own ? out + rows_.degree : nullptr;
    for (int e = 0; e < rows_.degree; ++e) {
      const int64_t key = keys[e];
      if (descent_dot(key) == INT32_MIN) continue;
      const int32_t id = descent_id(key);
      const int64_t place = place_[static_cast<size_t>(id)];
      int64_t used = 0;
      if (own) {
        *out++ = static_cast<uint32_t>(id) << 1 | static_cast<uint32_t>(key & kDescentForward);
        used |= kDescentForward;
      }
      if (place >= from && place < to) {
        used |= kDescentBackward;
        // Every pair is offered to both lists, so the other has this row unless it has better ones only.
        if (settings_.reverse > 0 && descent_dot(key) <= rows_.thresholds[id])
          take_reverse(
              id, place - from,
              static_cast<uint32_t>(row) << 1 | static_cast<uint32_t>((key & kDescentBackward) != 0));
      }
      keys[e] = key & ~used;
    }
    std::fill(out, end, kNobody);
  }
}

void Descent::Work::take_reverse(int32_t row, int64_t slot, uint32_t entry) {
  uint32_t* const list = backward_.as<uint32_t>() + slot * settings_.reverse;
  std::atomic_ref<uint8_t> lock(rows_.locks[row]);
  while (lock.exchange(1, std::memory_order_acquire) != 0) {
  }
  int worst = 0;
  uint32_t last = 0;
  for (int e = 0; e < settings_.reverse; ++e) {
    const uint32_t place = list[e] == kNobody ? 0xFFFFFFFFU : precedence(row, list[e]);
    if (place >= last) {
      last = place;
      worst = e;
    }
    if (list[e] == kNobody) break;
  }
  if (list[worst] == kNobody || precedence(row, entry) < last) list[worst] = entry;
  lock.store(0, std::memory_order_release);
}

DescentBlock Descent::Work::gather(int64_t slot, Once* once, int32_t* ids) const {
  const uint32_t* const forward = forward_.as<uint32_t>() + slot * rows_.degree;
  const uint32_t* const backward = backward_.as<uint32_t>() + slot * settings_.reverse;
  int32_t count = 0;
  once->clear();
  const auto take = [&](const uint32_t* list, int32_t most, uint32_t fresh) {
    for (int32_t e = 0; e < most && list[e] != kNobody; ++e) {
      const auto id = static_cast<int32_t>(list[e] >> 1);
      if ((list[e] & 1) == fresh && once->add(id)) ids[count++] = id;
    }
  };
  take(forward, rows_.degree, 1);
  take(backward, settings_.reverse, 1);
  const int32_t fresh = count;
  if (fresh == 0) return {ids, 0, 0};
  take(forward, rows_.degree, 0);
  take(backward, settings_.reverse, 0);
  for (int32_t e = 0; e < count; ++e) {
    const int8_t* const data = rows_.q + static_cast<int64_t>(ids[e]) * rows_.width;
    for (int32_t at = 0; at < rows_.width; at += 64) __builtin_prefetch(data + at);
    const int64_t* const keys = rows_.keys + static_cast<int64_t>(ids[e]) * rows_.degree;
    for (int32_t at = 0; at < rows_.degree; at += 8) __builtin_prefetch(keys + at);
  }
  return {ids, count, fresh};
}

void Descent::Work::join_rows(int64_t first, int64_t last, int thread) {
  const int32_t most = rows_.degree + settings_.reverse;
  void* const memory = scratch(thread, std::max(most, settings_.leaf));
  std::vector<int32_t> ids(static_cast<size_t>(2 * most));
  Once once(most);
  // The next block's rows are on their way while this one is joined.
  const auto next = [&](int64_t i) { return gather(i - stretch_first_, &once, ids.data() + (i % 2) * most); };
  DescentBlock ahead = next(first);
  for (int64_t i = first; i < last; ++i) {
    const DescentBlock block = ahead;
    if (i + 1 < last) ahead = next(i + 1);
    kernels_.join(rows_, block, memory, &own_[static_cast<size_t>(thread)].evaluated);
  }
}

}  // namespace obverse
