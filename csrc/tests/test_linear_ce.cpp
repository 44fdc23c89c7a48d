// The fused linear layer and cross-entropy against float64: every instruction set that runs here, both dtypes,
// awkward sizes, strides, chunks, threads. Errors are held against what the products are made of: the sum of the
// terms' sizes times a few roundings.
#include "obverse/linear_ce.hpp"

#include <cmath>
#include <cstring>
#include <vector>

#include "check.hpp"
#include "linear_ce_truth.hpp"

using namespace obverse;
using namespace obverse::testing;

namespace {

constexpr double kEpsilon = 1.1920929e-7;  // between floats near 1

/// Worst error over `bound` per element, and whether anything is out of it.
bool within(const Matrix& got, const std::vector<double>& want, const std::vector<double>& size, double share,
            double relative) {
  for (int64_t i = 0; i < got.rows(); ++i)
    for (int64_t j = 0; j < got.columns(); ++j) {
      const auto at = static_cast<size_t>(i * got.columns() + j);
      const double error = std::abs(got.get(i, j) - want[at]);
      if (!(error <= share * size[at] + relative * std::abs(want[at]) + 1e-30)) {
        std::fprintf(stderr, "[%ld, %ld]: got %.9g, want %.9g, size %.3g\n", static_cast<long>(i),
                     static_cast<long>(j), got.get(i, j), want[at], size[at]);
        return false;
      }
    }
  return got.guarded();
}

bool fields_within(const Trial& t, const Truth& truth, double share) {
  const std::vector<const std::vector<double>*> want{&truth.loss, &truth.weight, &truth.log_prob, &truth.lse};
  for (size_t f = 0; f < want.size(); ++f)
    for (int64_t i = 0; i < t.what.n; ++i) {
      const double x = (*want[f])[static_cast<size_t>(i)];
      const double got =
          static_cast<double>(t.fields[f * static_cast<size_t>(t.what.n) + static_cast<size_t>(i)]);
      const double bound =
          share * (std::abs(x) + (f == kWeight ? 0.0 : truth.weight[static_cast<size_t>(i)]) + 1.0);
      if (!(std::abs(got - x) <= bound)) {
        std::fprintf(stderr, "field %zu row %ld: got %.9g, want %.9g\n", f, static_cast<long>(i), got, x);
        return false;
      }
    }
  return true;
}

#define CHECK_CASE(condition, trial)                                              \
  do {                                                                            \
    const bool held = (condition);                                                \
    if (!held) std::fprintf(stderr, "in case %s\n", (trial).what.name().c_str()); \
    CHECK(held);                                                                  \
  } while (false)

/// Runs a case and holds every output against the truth.
void check_case(const Case& which, uint32_t seed) {
  Trial trial(which, seed);
  trial.run();
  const Truth truth(trial, false);
  const double z = 1.0 + truth.largest_logit;
  // A logit's error is a few roundings of its size, and becomes the same share of its probability.
  const double exact = 10.0 * kEpsilon * z;
  CHECK_CASE(fields_within(trial, truth, 2.0 * exact), trial);
  const bool paired = which.bfloat16 && std::min(which.isa, best_isa()) == Isa::kAvx512Bf16;
  const double share = paired ? 0.004 * z : exact;       // bfloat16 logits and their gradients: 2^-9 each
  const double relative = which.bfloat16 ? 0.004 : 0.0;  // the gradient's own dtype
  if (which.want_hidden)
    CHECK_CASE(within(trial.hidden_gradient, truth.hidden, truth.hidden_size, share, relative), trial);
  // Between chunks a bfloat16 head gradient has twelve bits: the errors of many chunks add up at random.
  const double folded = which.bfloat16 && which.rows_a_chunk > 0 ? 4e-4 : 0.0;
  if (which.want_head)
    CHECK_CASE(within(trial.head_gradient, truth.head, truth.head_size, share + folded, relative), trial);
  if (which.want_bias)
    CHECK_CASE(within(trial.bias_gradient, truth.bias, truth.bias_size, share, relative), trial);
  for (int8_t x : trial.clipped) CHECK_CASE(x >= -1 && x <= 1, trial);
}

const Isa kSets[] = {Isa::kPortable, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Bf16};

template <typename Call>
void for_each_set(const Call& call) {
  for (Isa isa : kSets)
    for (bool bfloat16 : {false, true})
      if (isa <= best_isa()) call(isa, bfloat16);
}

void test_sizes() {
  const int64_t sizes[][3] = {{1, 1, 1},    {1, 1, 2},     {2, 3, 1},      {3, 2, 3},
                              {5, 7, 17},   {7, 16, 64},   {48, 48, 64},   {49, 49, 65},
                              {17, 95, 97}, {50, 97, 517}, {101, 33, 130}, {9, 0, 11}};
  uint32_t seed = 1;
  for_each_set([&](Isa isa, bool bfloat16) {
    for (const auto& size : sizes) {
      Case c;
      c.n = size[0], c.d = size[1], c.v = size[2];
      c.isa = isa, c.bfloat16 = bfloat16, c.bias = seed % 3 != 0;
      c.threads = 1 + static_cast<int>(seed % 3);
      c.hidden_gap = seed % 4, c.head_gap = seed % 5;
      check_case(c, seed++);
    }
  });
}

void test_rules() {
  uint32_t seed = 1000;
  for_each_set([&](Isa isa, bool bfloat16) {
    for (int scheme = 0; scheme < 5; ++scheme)
      for (int options = 0; options < 8; ++options) {
        Case c;
        c.n = 45, c.d = 37, c.v = 523;
        c.isa = isa, c.bfloat16 = bfloat16;
        c.rule.scheme = static_cast<CeScheme>(scheme);
        c.rule.gamma = options % 2 == 0 ? 1.0F : 1.7F;
        c.rule.log_low = -2.0F, c.rule.log_high = 2.5F;
        c.rule.focal_detached = options % 3 == 0;
        c.rule.smoothing = (options & 1) != 0 ? 0.1F : 0.0F;
        c.rule.z_loss = (options & 2) != 0 ? 0.02F : 0.0F;
        c.class_weight = (options & 4) != 0;
        c.masked_class = c.class_weight && scheme % 2 == 0;
        c.sample_weight = scheme != 0;
        c.ignored = options % 4 == 3 ? 0.6 : 0.1;
        c.threads = 1 + options % 2;
        c.rows_a_chunk = options % 3 == 1 ? 7 : 0;
        c.size = options == 5 ? 8.0F : 1.0F;
        check_case(c, seed++);
      }
  });
}

/// Many chunks: sums over rows go through the gradient's memory many times.
void test_chunks() {
  uint32_t seed = 2000;
  for_each_set([&](Isa isa, bool bfloat16) {
    Case c;
    c.n = 600, c.d = 51, c.v = 70;
    c.isa = isa, c.bfloat16 = bfloat16;
    c.rows_a_chunk = 1;
    c.threads = 2;
    c.ignored = 0.3;
    check_case(c, seed++);
  });
}

/// Only what is asked for is written, and no gradient at all is the loss alone.
void test_some_gradients() {
  uint32_t seed = 3000;
  for_each_set([&](Isa isa, bool bfloat16) {
    for (int wanted = 0; wanted < 8; ++wanted) {
      Case c;
      c.n = 55, c.d = 50, c.v = 131;
      c.isa = isa, c.bfloat16 = bfloat16;
      c.want_hidden = (wanted & 1) != 0, c.want_head = (wanted & 2) != 0, c.want_bias = (wanted & 4) != 0;
      c.ignored = 0.2;
      check_case(c, seed++);
    }
  });
}

/// Logits whose exponentials are no floats: in the rows that count, and in those that fill the last panel.
void test_large_logits() {
  uint32_t seed = 4000;
  for_each_set([&](Isa isa, bool bfloat16) {
    for (float shift : {-200.0F, 200.0F}) {
      Case c;
      c.n = 5, c.d = 20, c.v = 200;
      c.isa = isa, c.bfloat16 = bfloat16;
      c.shift = shift;
      c.rule.smoothing = 0.1F;
      check_case(c, seed++);
      c.threads = 2, c.step = -shift;  // one thread's classes are nothing beside the other's
      check_case(c, seed++);
    }
  });
}

bool all_zero(const Matrix& x) {
  for (int64_t i = 0; i < x.rows(); ++i)
    for (int64_t j = 0; j < x.columns(); ++j)
      if (x.get(i, j) != 0.0) return false;
  return true;
}

void test_no_row_counts() {
  for_each_set([&](Isa isa, bool bfloat16) {
    for (int64_t n : {0, 5}) {
      Case c;
      c.n = n, c.d = 3, c.v = 9;
      c.isa = isa, c.bfloat16 = bfloat16;
      c.ignored = 1.0;
      Trial trial(c, 7);
      trial.run();
      CHECK(all_zero(trial.head_gradient) && all_zero(trial.bias_gradient) &&
            all_zero(trial.hidden_gradient));
      for (int64_t i = 0; i < n; ++i) CHECK(trial.fields[static_cast<size_t>(i)] == 0.0F);
    }
  });
}

/// A target outside the classes makes its own row NaN, and no other's fields.
void test_target_outside() {
  for_each_set([&](Isa isa, bool bfloat16) {
    Case c;
    c.n = 4, c.d = 3, c.v = 9;
    c.isa = isa, c.bfloat16 = bfloat16;
    Trial trial(c, 8);
    trial.target[2] = 9;
    trial.run();
    for (size_t i = 0; i < 4; ++i) CHECK(std::isnan(trial.fields[i]) == (i == 2));
    for (int64_t k = 0; k < 3; ++k) {
      CHECK(std::isnan(trial.hidden_gradient.get(2, k)));
      CHECK(!std::isnan(trial.hidden_gradient.get(1, k)));
    }
  });
}

/// NaN in a counted row stays visible.
void test_nan_is_seen() {
  for_each_set([&](Isa isa, bool bfloat16) {
    Case c;
    c.n = 4, c.d = 3, c.v = 90;
    c.isa = isa, c.bfloat16 = bfloat16;
    Trial trial(c, 9);
    trial.hidden.set(1, 2, kPoison);
    trial.run();
    for (size_t i = 0; i < 4; ++i) CHECK(std::isnan(trial.fields[i]) == (i == 1));
    CHECK(std::isnan(trial.hidden_gradient.get(1, 0)) && std::isnan(trial.head_gradient.get(50, 0)));
  });
}

/// Two runs of the same call on two threads: the same bits.
void test_timing_changes_nothing() {
  for_each_set([&](Isa isa, bool bfloat16) {
    Case c;
    c.n = 130, c.d = 70, c.v = 1001;
    c.isa = isa, c.bfloat16 = bfloat16;
    c.threads = 2, c.rows_a_chunk = 40;
    Trial once(c, 10), twice(c, 10);
    once.run();
    twice.run();
    CHECK(once.head_gradient.bytes() == twice.head_gradient.bytes());
    CHECK(once.hidden_gradient.bytes() == twice.hidden_gradient.bytes());
    CHECK(once.bias_gradient.bytes() == twice.bias_gradient.bytes());
    CHECK(std::memcmp(once.fields.data(), twice.fields.data(), once.fields.size() * sizeof(float)) == 0);
  });
}

double rms_error(const Matrix& got, const std::vector<double>& want) {
  double sum = 0.0;
  for (int64_t i = 0; i < got.rows(); ++i)
    for (int64_t j = 0; j < got.columns(); ++j)
      sum += std::pow(got.get(i, j) - want[static_cast<size_t>(i * got.columns() + j)], 2.0);
  return std::sqrt(sum / static_cast<double>(want.size()));
}
double rms_error(const std::vector<double>& got, const std::vector<double>& want) {
  double sum = 0.0;
  for (size_t i = 0; i < got.size(); ++i)
    sum += std::pow(static_cast<double>(rounded_to_bfloat16(got[i])) - want[i], 2.0);
  return std::sqrt(sum / static_cast<double>(want.size()));
}

/// bfloat16 is no less accurate than a composition in that dtype with exact sums, each rounded once; the mean
/// loss is within 1e-5, which logits in bfloat16 would miss.
void test_bfloat16_error() {
  for (Isa isa : kSets)
    for (int64_t chunk : {0, 48}) {
      if (isa > best_isa()) continue;
      Case c;
      c.n = 800, c.d = 64, c.v = 300, c.bfloat16 = true;
      c.isa = isa, c.rows_a_chunk = chunk, c.size = 3.0F;
      Trial trial(c, 11);
      trial.run();
      const Truth truth(trial, false), composed(trial, true);
      CHECK_CASE(rms_error(trial.head_gradient, truth.head) <= 1.02 * rms_error(composed.head, truth.head),
                 trial);
      CHECK_CASE(
          rms_error(trial.hidden_gradient, truth.hidden) <= 1.02 * rms_error(composed.hidden, truth.hidden),
          trial);
      CHECK_CASE(rms_error(trial.bias_gradient, truth.bias) <= 1.02 * rms_error(composed.bias, truth.bias),
                 trial);
      double got = 0.0, want = 0.0;
      for (size_t i = 0; i < 800; ++i) got += static_cast<double>(trial.fields[i]), want += truth.loss[i];
      CHECK_CASE(std::abs(got - want) <= 1e-6 * want, trial);
    }
}

void test_which_is_fast() {
  CHECK(!linear_ce_is_fast(CeDtype::kFloat32, Isa::kPortable));
  CHECK(!linear_ce_is_fast(CeDtype::kBfloat16, Isa::kAvx512));
  CHECK(!linear_ce_is_fast(CeDtype::kFloat16, Isa::kAvx512Bf16));
  CHECK(linear_ce_is_fast(CeDtype::kFloat32, Isa::kAvx512Bf16) == (best_isa() >= Isa::kAvx2));
}

}  // namespace

int main() {
  test_sizes();
  test_rules();
  test_chunks();
  test_some_gradients();
  test_large_logits();
  test_no_row_counts();
  test_target_outside();
  test_nan_is_seen();
  test_timing_changes_nothing();
  test_bfloat16_error();
  test_which_is_fast();
  return obverse::testing::report("linear_ce");
}
