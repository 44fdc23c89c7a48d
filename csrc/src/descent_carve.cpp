#include <numeric>

#include "descent_work.hpp"
#include "obverse/random.hpp"

namespace obverse {
namespace {

constexpr int64_t kTopLeaders = 1024;
constexpr int64_t kLeaders = 32;  // of a part

/// `count` of `n` positions, one of each of `count` even stretches.
void draw(uint64_t seed, uint64_t key, int64_t n, int64_t count, const int32_t* ids, int32_t* out) {
  KeyedRandom random(seed, key);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t first = i * n / count, last = (i + 1) * n / count;
    out[i] = ids[first + static_cast<int64_t>(random.below(static_cast<uint64_t>(last - first)))];
  }
}

}  // namespace

void Descent::Work::begin_carving() {
  const auto& firsts = equal_.firsts();
  const auto rows = static_cast<int64_t>(firsts.size());
  // Twice as many leaders as full leaves: parts differ much in size.
  const int64_t leaders = rows <= settings_.leaf ? 1 : std::min(kTopLeaders, 2 * rows / settings_.leaf);
  carving_.parts = static_cast<int32_t>(leaders);
  const int64_t fanout = std::min<int64_t>(settings_.fanout, leaders);
  carving_.chosen.assign(static_cast<size_t>(rows * fanout), 0);
  std::vector<int32_t> ids(static_cast<size_t>(leaders));
  draw(settings_.seed, static_cast<uint64_t>(number_), rows, leaders, firsts.data(), ids.data());
  leaders_ = Memory(kernels_.scratch_bytes(front_.width, carving_.parts));
  kernels_.pack(front_, ids.data(), carving_.parts, leaders_.as<void>());
}

void Descent::Work::choose(int64_t first, int64_t last) {
  const auto fanout = std::min(settings_.fanout, carving_.parts);
  parallel_pieces(settings_.threads, last - first, 512, [&](int64_t from, int64_t to, int) {
    kernels_.nearest(front_, equal_.firsts().data() + first + from, static_cast<int32_t>(to - from),
                     leaders_.as<void>(), carving_.parts, fanout,
                     carving_.chosen.data() + (first + from) * fanout);
  });
}

void Descent::Work::sort_by_leader() {
  const auto& firsts = equal_.firsts();
  const int64_t fanout = std::min(settings_.fanout, carving_.parts);
  auto& start = carving_.start;
  start.assign(static_cast<size_t>(carving_.parts) + 1, 0);
  for (const int32_t part : carving_.chosen) ++start[static_cast<size_t>(part) + 1];
  std::partial_sum(start.begin(), start.end(), start.begin());
  std::vector<int64_t> next(start.begin(), start.end() - 1);
  carving_.order.resize(carving_.chosen.size());
  for (size_t i = 0; i < carving_.chosen.size(); ++i)
    carving_.order[static_cast<size_t>(next[static_cast<size_t>(carving_.chosen[i])]++)] =
        firsts[i / static_cast<size_t>(fanout)];
}

void Descent::Work::join_parts(int64_t first, int64_t last) {
  parallel_pieces(settings_.threads, last - first, 1, [&](int64_t from, int64_t, int thread) {
    const auto part = static_cast<size_t>(first + from);
    const int64_t begin = carving_.start[part], count = carving_.start[part + 1] - begin;
    carve(carving_.order.data() + begin, count, mix64(static_cast<uint64_t>(number_) << 32 | part), thread);
  });
}

void Descent::Work::carve(int32_t* ids, int64_t count, uint64_t key, int thread) {
  if (count <= settings_.leaf) {
    const auto size = static_cast<int32_t>(count);
    kernels_.join(rows_, {ids, size, size}, scratch(thread, settings_.leaf),
                  &own_[static_cast<size_t>(thread)].evaluated);
    return;
  }
  const auto leaders = static_cast<int32_t>(std::min(kLeaders, 2 * count / settings_.leaf + 1));
  int32_t leader_ids[kLeaders];
  draw(settings_.seed, key, count, leaders, ids, leader_ids);
  std::vector<int32_t> chosen(static_cast<size_t>(count)), sorted(static_cast<size_t>(count));
  void* const packed = scratch(thread, settings_.leaf);
  kernels_.pack(front_, leader_ids, leaders, packed);
  kernels_.nearest(front_, ids, static_cast<int32_t>(count), packed, leaders, 1, chosen.data());
  int64_t start[kLeaders + 1] = {}, next[kLeaders];
  for (const int32_t leader : chosen) ++start[leader + 1];
  bool split = true;
  for (int32_t i = 0; i < leaders; ++i) {
    split &= start[i + 1] < count;
    start[i + 1] += start[i];
    next[i] = start[i];
  }
  if (!split) {  // rows that leaders can't tell apart: in pieces as they come
    for (int64_t i = 0; i < count; i += settings_.leaf)
      carve(ids + i, std::min<int64_t>(settings_.leaf, count - i), key, thread);
    return;
  }
  for (int64_t i = 0; i < count; ++i)
    sorted[static_cast<size_t>(next[chosen[static_cast<size_t>(i)]]++)] = ids[i];
  std::copy(sorted.begin(), sorted.end(), ids);
  chosen = {};
  sorted = {};
  for (int32_t i = 0; i < leaders; ++i)
    carve(ids + start[i], start[i + 1] - start[i], mix64(key ^ mix64(static_cast<uint64_t>(i))), thread);
}

void Descent::Work::keep_order() {
  std::vector<bool> seen(static_cast<size_t>(n_));
  order_.clear();
  order_.reserve(equal_.firsts().size());
  for (const int32_t row : carving_.order) {
    if (!seen[static_cast<size_t>(row)]) order_.push_back(row);
    seen[static_cast<size_t>(row)] = true;
  }
}

}  // namespace obverse
