#include "exact_join_scan.hpp"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <limits>
#include <mutex>

#include "parallel.hpp"
#include "quantised_kernels.hpp"

namespace obverse {
namespace {

constexpr int64_t kBandRows = 4096;  // a multiple of kSubRows: what a tile, once packed, meets
constexpr int64_t kPartRows = 2048;  // rows of a band that meet a tile with the same prefix
constexpr int64_t kSampleRows = 12, kSampleColumns = 24;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

float float_up(double value) {
  const auto nearest = static_cast<float>(value);
  return static_cast<double>(nearest) >= value ? nearest : std::nextafter(nearest, kInfinity);
}
float float_down(double value) { return -float_up(-value); }

/// In units of scale^2, with what the filter's float arithmetic may be off by: conversion and one multiply-add of
/// figures below 8 / unit.
float floor_units(float cosine, double unit) {
  return float_down((static_cast<double>(cosine) - 0x1p-20) / unit - 1.0);
}
int32_t error_units(float error, double unit) {
  return static_cast<int32_t>(std::ceil(static_cast<double>(error) / unit));
}

/// Rows of one side as a band or tile needs them.
struct Loaded {
  int64_t first = 0, count = 0;
  std::vector<int32_t> ids;
  std::vector<float> cosine_floor, floor;
  std::vector<int32_t> error;   // in units
  std::vector<int32_t> sums;    // of all values
  std::vector<int32_t> chunks;  // [padded, width / 32]: squares
  Memory q;

  Loaded(int64_t padded, int64_t width)
      : ids(static_cast<size_t>(padded)),
        cosine_floor(static_cast<size_t>(padded)),
        floor(static_cast<size_t>(padded)),
        error(static_cast<size_t>(padded)),
        sums(static_cast<size_t>(padded)),
        chunks(static_cast<size_t>(padded * (width / kFilterChunk))),
        q(padded * width) {}
};

int32_t sum_of(const int8_t* q, int64_t count) {
  int32_t sum = 0;
  for (int64_t c = 0; c < count; ++c) sum += q[c];
  return sum;
}

struct Source {
  const JoinSide& side;
  span<const int32_t> order;
  bool column;
};

void load(const Source& from, int64_t first, int64_t count, int64_t width, double unit,
          const JoinKernels& kernels, const PairSink& sink, Loaded& to) {
  const auto padded = static_cast<int64_t>(to.ids.size());
  to.first = first;
  to.count = count;
  auto* const q = to.q.as<int8_t>();
  std::copy_n(from.order.data() + first, count, to.ids.begin());
  sink.floors(to.ids.data(), count, from.column, to.cosine_floor.data());
  for (int64_t i = 0; i < count; ++i) {
    const auto at = static_cast<size_t>(i);
    const int64_t id = to.ids[at];
    if (i + 8 < count) {
      const int8_t* const later = from.side.q + int64_t{to.ids[at + 8]} * width;
      for (int64_t c = 0; c < width; c += 64) __builtin_prefetch(later + c);
    }
    const int8_t* const row = from.side.q + id * width;
    std::copy_n(row, width, q + i * width);
    kernels.chunk_dots(row, row, width, to.chunks.data() + i * (width / kFilterChunk));
    to.sums[at] = sum_of(row, width);
    to.error[at] = error_units(from.side.error[id], unit);
    to.floor[at] = floor_units(to.cosine_floor[at], unit);
  }
  std::fill_n(q + count * width, (padded - count) * width, int8_t{0});
  std::fill(to.floor.begin() + count, to.floor.end(), kInfinity);
  std::fill(to.error.begin() + count, to.error.end(), 0);
  std::fill(to.sums.begin() + count, to.sums.end(), 0);
  std::fill(to.chunks.begin() + count * (width / kFilterChunk), to.chunks.end(), 0);
}

/// sqrt of the squares of values p and later, rounded up.
float tail_of(const int32_t* chunks, int64_t p, int64_t width) {
  int64_t squares = 0;
  for (int64_t c = p / kFilterChunk; c < width / kFilterChunk; ++c) squares += chunks[c];
  return float_up(std::sqrt(static_cast<double>(squares)) * (1.0 + 1e-12));
}

std::vector<int64_t> prefixes_of(int64_t width) {
  std::vector<int64_t> all;
  for (int64_t p = kFilterChunk; p < width; p += p < 256 ? kFilterChunk : (p / 4 + 63) / 64 * 64)
    all.push_back(p);
  all.push_back(width);
  return all;
}

}  // namespace

struct PairScan::Band : Loaded {
  Band(int64_t width, int64_t value_bytes, size_t prefixes)
      : Loaded(kBandRows, width), packed(kBandRows * width * value_bytes), start(prefixes), tail(prefixes) {}
  Memory packed;
  std::vector<std::vector<int32_t>> start;  // one a prefix
  std::vector<std::vector<float>> tail;
};

struct PairScan::Tile : Loaded {
  Tile(int64_t width, int64_t value_bytes)
      : Loaded(kTileColumns, width),
        packed(kTileColumns * width * value_bytes),
        tail(kTileColumns),
        row_floor(kBandRows),
        bits(static_cast<size_t>(kSubRows * kTileWords)),
        list(kTileColumns),
        dots(kTileColumns) {}
  Memory packed;
  float least = 0.0F;  // of the floors
  std::vector<float> tail, row_floor;
  std::vector<uint64_t> bits;
  std::vector<int32_t> list, dots;
  std::vector<FoundPair> found;
};

PairScan::PairScan(const JoinProblem& problem, span<const int32_t> rows, span<const int32_t> columns)
    : problem_(problem),
      kernels_(join_kernels(problem.run.isa)),
      rows_(rows),
      columns_(columns),
      unit_(problem.scale * problem.scale),
      prefixes_(prefixes_of(problem.width)) {}

int64_t PairScan::steps() const { return (static_cast<int64_t>(rows_.size()) + kBandRows - 1) / kBandRows; }

void PairScan::load_band(int64_t first, int64_t count, const PairSink& sink, Band& band) const {
  const int64_t width = problem_.width;
  load({problem_.x, rows_, false}, first, count, width, unit_, kernels_, sink, band);
  kernels_.pack_rows(band.q.as<int8_t>(), kBandRows, width, band.packed.as<void>());
  for (size_t f = 0; f < prefixes_.size(); ++f) {
    const int64_t p = prefixes_[f];
    band.start[f].resize(kBandRows);
    band.tail[f].resize(kBandRows);
    for (int64_t i = 0; i < kBandRows; ++i) {
      const auto at = static_cast<size_t>(i);
      const int64_t shift = int64_t{kernels_.column_offset} * sum_of(band.q.as<int8_t>() + i * width, p);
      band.start[f][at] = static_cast<int32_t>(band.error[at] - shift);
      band.tail[f][at] = tail_of(band.chunks.data() + i * (width / kFilterChunk), p, width);
    }
  }
}

void PairScan::load_tile(int64_t first, int64_t count, const PairSink& sink, Tile& tile) const {
  const JoinSide& side = problem_.self ? problem_.x : problem_.y;
  const span<const int32_t> order = problem_.self ? rows_ : columns_;
  load({side, order, !problem_.self}, first, count, problem_.width, unit_, kernels_, sink, tile);
  tile.least = *std::min_element(tile.floor.begin(), tile.floor.begin() + count);
}

/// The prefix that costs least, by a sample of pairs: any is right.
size_t PairScan::choose_prefix(const Band& band, int64_t first, const Tile& tile) const {
  const int64_t width = problem_.width, chunks = width / kFilterChunk;
  std::vector<int32_t> parts(static_cast<size_t>(chunks));
  std::vector<int64_t> passed(prefixes_.size());
  const int64_t count = std::min(kPartRows, band.count - first);
  const int64_t num_rows = std::min(kSampleRows, count), num_columns = std::min(kSampleColumns, tile.count);
  for (int64_t a = 0; a < num_rows; ++a) {
    const int64_t i = first + (2 * a + 1) * count / (2 * num_rows);
    const double least = std::min(band.floor[static_cast<size_t>(i)], tile.least);
    for (int64_t b = 0; b < num_columns; ++b) {
      const int64_t j = (2 * b + 1) * tile.count / (2 * num_columns);
      kernels_.chunk_dots(band.q.as<int8_t>() + i * width, tile.q.as<int8_t>() + j * width, width,
                          parts.data());
      double dot = band.error[static_cast<size_t>(i)] + tile.error[static_cast<size_t>(j)];
      double tail_i = 0.0, tail_j = 0.0;
      for (int64_t c = 0; c < chunks; ++c) {
        dot += parts[static_cast<size_t>(c)];
        tail_i += band.chunks[static_cast<size_t>(i * chunks + c)];
        tail_j += tile.chunks[static_cast<size_t>(j * chunks + c)];
      }
      // From the longest prefix to the shortest, taking chunks back.
      int64_t c = chunks;
      double left_i = 0.0, left_j = 0.0;
      for (size_t f = prefixes_.size(); f-- > 0;) {
        for (; c > prefixes_[f] / kFilterChunk; --c) {
          dot -= parts[static_cast<size_t>(c - 1)];
          left_i += band.chunks[static_cast<size_t>(i * chunks + c - 1)];
          left_j += tile.chunks[static_cast<size_t>(j * chunks + c - 1)];
        }
        passed[f] += dot + std::sqrt(left_i * left_j) >= least;
      }
    }
  }
  size_t best = 0;
  double best_cost = std::numeric_limits<double>::infinity();
  for (size_t f = 0; f < prefixes_.size(); ++f) {
    const double share = static_cast<double>(passed[f]) / static_cast<double>(num_rows * num_columns);
    const double cost = static_cast<double>(prefixes_[f]) + kernels_.pass_cost * share;
    if (cost < best_cost) {
      best = f;
      best_cost = cost;
    }
  }
  return best;
}

void PairScan::scan_row(const Band& band, Tile& tile, int64_t row, const uint64_t* bits,
                        JoinCounts& counts) const {
  const int64_t width = problem_.width;
  // In a self-join a row meets those after it.
  const int64_t after = problem_.self ? std::max<int64_t>(band.first + row + 1 - tile.first, 0) : 0;
  if (after >= tile.count) return;
  counts.pairs += tile.count - after;
  int64_t count = 0;
  for (int64_t w = after / 64; w < (tile.count + 63) / 64; ++w) {
    uint64_t word = bits[w];
    if (w == after / 64) word &= ~uint64_t{0} << (after % 64);
    if (tile.count - w * 64 < 64) word &= (uint64_t{1} << (tile.count - w * 64)) - 1;
    for (; word != 0; word &= word - 1) {
      tile.list[static_cast<size_t>(count++)] = static_cast<int32_t>(w * 64 + std::countr_zero(word));
    }
  }
  counts.passed_prefix += count;
  kernels_.dots(band.q.as<int8_t>() + row * width, tile.q.as<int8_t>(), tile.sums.data(), width,
                tile.list.data(), count, tile.dots.data());
  const auto at = static_cast<size_t>(row);
  const int32_t error = band.error[at];
  const float least = band.floor[at];
  for (int64_t t = 0; t < count; ++t) {
    const auto j = static_cast<size_t>(tile.list[static_cast<size_t>(t)]);
    const int32_t dot = tile.dots[static_cast<size_t>(t)];
    if (static_cast<float>(dot + error + tile.error[j]) >= std::min(least, tile.floor[j])) {
      tile.found.push_back({band.ids[at], tile.ids[j], static_cast<float>(unit_ * dot)});
    }
  }
}

void PairScan::pack_tile(Tile& tile, int64_t p) const {
  const int64_t group = kernels_.column_group;
  kernels_.pack_columns(tile.q.as<int8_t>(), (tile.count + group - 1) / group * group, problem_.width, p,
                        tile.packed.as<void>());
}

void PairScan::run_tile(const Band& band, Tile& tile, PairSink& sink, JoinCounts& counts) const {
  const int64_t group = kernels_.column_group, last = tile.first + tile.count - 1 - band.first;
  // In a self-join a row meets the columns after it: rows from `end` on meet none of this tile.
  const int64_t end = problem_.self ? std::min(band.count, last) : band.count;
  std::vector<size_t> chosen;
  for (int64_t row = 0; row < end; row += kPartRows) chosen.push_back(choose_prefix(band, row, tile));
  if (chosen.empty()) return;
  const int64_t longest = prefixes_[*std::max_element(chosen.begin(), chosen.end())];
  pack_tile(tile, longest);
  for (size_t i = 0; i < tile.row_floor.size(); ++i) tile.row_floor[i] = std::min(band.floor[i], tile.least);
  FilterJob job;
  job.chunk_bytes = kBandRows * kFilterChunk * kernels_.value_bytes;
  job.columns = tile.packed.as<void>();
  job.group_values = longest * group;
  job.groups = (tile.count + group - 1) / group;
  job.column_start = tile.error.data();
  job.bits = reinterpret_cast<uint16_t*>(tile.bits.data());
  for (int64_t row = 0; row < end; row += kSubRows) {
    const int64_t count = std::min(kSubRows, end - row);
    const int64_t after = problem_.self ? std::max<int64_t>(band.first + row + 1 - tile.first, 0) : 0;
    const size_t f = chosen[static_cast<size_t>(row / kPartRows)];
    if (job.p != prefixes_[f]) {
      job.p = prefixes_[f];
      set_tails(tile, job.p);
    }
    job.column_tail = tile.tail.data();
    job.rows = band.packed.as<char>() + row * kFilterChunk * kernels_.value_bytes;
    job.row_groups = (count + kFilterRows - 1) / kFilterRows;
    job.first_group = after / group;
    job.row_start = band.start[f].data() + row;
    job.row_tail = band.tail[f].data() + row;
    job.row_floor = tile.row_floor.data() + row;
    kernels_.filter(job);
    counts.prefix_values += static_cast<double>(count * (job.groups - job.first_group) * group * job.p);
    tile.found.clear();
    for (int64_t r = 0; r < count; ++r) {
      scan_row(band, tile, row + r, tile.bits.data() + r * kTileWords, counts);
    }
    counts.passed_rows += static_cast<int64_t>(tile.found.size());
    if (!tile.found.empty()) sink.take(tile.found, counts);
  }
}

void PairScan::set_tails(Tile& tile, int64_t p) const {
  for (int64_t j = 0; j < kTileColumns; ++j) {
    tile.tail[static_cast<size_t>(j)] =
        tail_of(tile.chunks.data() + j * (problem_.width / kFilterChunk), p, problem_.width);
  }
}

void PairScan::step(int64_t index, PairSink& sink, JoinCounts& counts) {
  const auto num_rows = static_cast<int64_t>(rows_.size());
  const int64_t first = index * kBandRows, count = std::min(kBandRows, num_rows - first);
  Band band(problem_.width, kernels_.value_bytes, prefixes_.size());
  load_band(first, count, sink, band);
  const int64_t begin = problem_.self ? first : 0;
  const int64_t end = problem_.self ? num_rows : static_cast<int64_t>(columns_.size());
  const int64_t tiles = (end - begin + kTileColumns - 1) / kTileColumns;
  std::atomic<int64_t> next{0};
  std::mutex mutex;
  const int threads = static_cast<int>(std::clamp<int64_t>(tiles, 1, std::max(problem_.run.threads, 1)));
  parallel_for(threads, threads, 1, [&](int64_t, int64_t, int) {
    Tile tile(problem_.width, kernels_.value_bytes);
    JoinCounts own;
    for (int64_t t = next.fetch_add(1); t < tiles; t = next.fetch_add(1)) {
      const int64_t column = begin + t * kTileColumns;
      load_tile(column, std::min(kTileColumns, end - column), sink, tile);
      run_tile(band, tile, sink, own);
    }
    const std::lock_guard<std::mutex> lock(mutex);
    counts.add(own);
  });
}

const JoinKernels& join_kernels(VectorIsa bound) {
#if defined(OBVERSE_X86_64)
  switch (std::min(bound, best_vector_isa())) {
    case VectorIsa::kAvx512Vnni:
      return kJoinKernelsAvx512Vnni;
    case VectorIsa::kAvx2:
      return kJoinKernelsAvx2;
    default:
      return kJoinKernelsPortable;
  }
#else
  static_cast<void>(bound);
  return kJoinKernelsPortable;
#endif
}

void check_problem(const JoinProblem& problem) {
  require(problem.width % 64 == 0 && problem.width > 0 && problem.width <= 65536,
          "width must be a multiple of 64 in [64, 65536], got ", problem.width);
  require(problem.scale >= 0x1p-12, "scale must be at least 2^-12, got ", problem.scale);
  require(problem.x.x.columns == problem.y.x.columns && problem.x.x.dtype == problem.y.x.dtype,
          "both sides must have the same columns and dtype, got ", problem.x.x.columns, " and ",
          problem.y.x.columns, " columns");
}

ExactCosine::ExactCosine(const JoinProblem& problem)
    : dot_(problem.x.x.dtype == VectorDtype::kFloat32 ? vector_kernels(problem.run.isa).dot_float
                                                      : vector_kernels(problem.run.isa).dot_half),
      x_(static_cast<const char*>(problem.x.x.data)),
      y_(static_cast<const char*>(problem.y.x.data)),
      x_norms_(problem.x.norms),
      y_norms_(problem.y.norms),
      columns_(problem.x.x.columns),
      row_bytes_(columns_ * (problem.x.x.dtype == VectorDtype::kFloat32 ? 4 : 2)) {}

void JoinCounts::add(const JoinCounts& other) {
  pairs += other.pairs;
  passed_prefix += other.passed_prefix;
  passed_rows += other.passed_rows;
  evaluated += other.evaluated;
  prefix_values += other.prefix_values;
}

}  // namespace obverse
