// What a descent holds between its steps.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

#include "descent_kernels.hpp"
#include "memory.hpp"
#include "obverse/descent.hpp"
#include "parallel.hpp"

namespace obverse {

/// Calls `body(first, last, thread)` for pieces of [0, n) of `piece` items, each taken by the thread that is free.
template <typename Body>
void parallel_pieces(int threads, int64_t n, int64_t piece, const Body& body) {
  std::atomic<int64_t> next{0};
  const int64_t pieces = (n + piece - 1) / piece;
  parallel_for(static_cast<int>(std::min<int64_t>(threads, pieces)), std::min<int64_t>(threads, pieces), 1,
               [&](int64_t from, int64_t to, int thread) {
                 for (int64_t share = from; share < to;
                      ++share)  // a share that comes late finds nothing left
                   for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < pieces;)
                     body(i * piece, std::min(n, (i + 1) * piece), thread);
               });
}

/// Rows whose bytes are equal, found by hashing: the lowest of each group stands for all.
class EqualRows {
 public:
  EqualRows(span<const int8_t> q, int64_t n, int32_t width, int threads);
  const std::vector<int32_t>& firsts() const { return firsts_; }  // ascending
  int32_t first(int64_t row) const { return first_[static_cast<size_t>(row)]; }
  /// The next row with the same bytes, or -1.
  int32_t next(int32_t row) const { return next_[static_cast<size_t>(row)]; }

 private:
  std::vector<int32_t> firsts_;
  std::vector<int32_t> first_, next_;  // [n]
};

/// A set of rows divided among leaders, all pairs of each leaf compared.
struct Carving {
  int32_t parts = 0;            // leaders of the whole
  std::vector<int32_t> chosen;  // [rows, fanout]: each row's nearest leaders
  std::vector<int32_t> order;   // [rows * fanout]: rows by leader
  std::vector<int64_t> start;   // [parts + 1] into order
};

/// Values of a row by which its leaders are chosen (quantised rows have their principal axes first).
constexpr int32_t kFrontWidth = 192;

class Once;  // descent_rounds.cpp

class Descent::Work {
 public:
  Work(span<const int8_t> q, int64_t n, int32_t width, const DescentSettings& settings);

  DescentProgress step();
  void candidates(int32_t m, span<int32_t> out) const;
  int64_t nbytes() const;
  int64_t distinct() const { return static_cast<int64_t>(equal_.firsts().size()); }
  bool done() const { return part_ == Part::kDone; }

 private:
  enum class Part { kChoose, kLeaves, kRound, kDone };

  // descent_carve.cpp
  void begin_carving();
  void choose(int64_t first, int64_t last);
  void sort_by_leader();
  void join_parts(int64_t first, int64_t last);
  void carve(int32_t* ids, int64_t count, uint64_t key, int thread);
  void keep_order();

  // descent_rounds.cpp
  int64_t stretch_rows() const;
  void begin_stretch(int64_t first);
  void snapshot(int64_t first, int64_t last);
  void take_reverse(int32_t row, int64_t slot, uint32_t entry);
  DescentBlock gather(int64_t slot, Once* once, int32_t* ids) const;
  void join_rows(int64_t first, int64_t last, int thread);

  DescentProgress progress(const char* part, int32_t number, double fraction) const;
  bool settled(double share) const;  // by changed_
  DescentProgress step_choose();
  DescentProgress step_leaves();
  DescentProgress step_round();
  void end_carving();
  void end_round();
  void* scratch(int thread, int32_t count);
  int64_t count_fresh() const;
  void mark_all(bool fresh);

  const DescentSettings settings_;
  const int64_t n_;
  const EqualRows equal_;
  const DescentKernels& kernels_;
  DescentRows rows_;
  DescentRows front_;  // only the first values of each row, for choosing leaders: these carry most of it
  Memory sums_, keys_, thresholds_, locks_;
  struct alignas(64) Own {
    int64_t evaluated = 0;
    Memory scratch;
    int64_t scratch_bytes = 0;
  };
  std::vector<Own> own_;  // a thread's

  Part part_ = Part::kChoose;
  int32_t number_ = 0;
  int64_t at_ = 0;
  int64_t changed_ = 0;  // entries of all lists that the last part changed
  Carving carving_;
  Memory leaders_;
  std::vector<int32_t> order_;  // the distinct rows, near ones together, as the first carving left them

  std::vector<int32_t> place_;                    // [n]: where a row stands in order_
  int64_t stretch_first_ = 0, stretch_last_ = 0;  // the places that are joined next
  // [stretch_rows, degree] and [stretch_rows, reverse] of id << 1 | fresh, kNobody where there are fewer
  Memory forward_, backward_;
};

constexpr uint32_t kNobody = 0xFFFFFFFFU;

}  // namespace obverse
