// The weighted cross-entropy on every instruction set of this machine against long double truth.
#include "weighted_ce_problem.hpp"

using namespace obverse;
using namespace obverse::testing;

namespace {

// ---- tests ----

// Around each width of the small kernels' tiles, around a block, and several blocks.
const int64_t kColumns[] = {1, 2, 3, 4, 5, 8, 11, 16, 17, 64, 65, 128, 129, 1000, 4097, 9001, 32001};

void test_against_truth(Isa isa) {
  const CeScheme schemes[] = {CeScheme::kPlain, CeScheme::kSampleWeight, CeScheme::kImp, CeScheme::kDimp,
                              CeScheme::kFocal};
  const CeDtype dtypes[] = {CeDtype::kFloat32, CeDtype::kBfloat16, CeDtype::kFloat16};
  int turn = static_cast<int>(random_bits() % 64);
  for (const int64_t v : kColumns) {
    for (const CeScheme scheme : schemes) {
      for (const CeDtype dtype : dtypes) {
        ++turn;  // the other choices take turns: every pair of them comes up
        const int64_t n = v > 2000 ? 3 : v > 64 ? 19 : 37;
        Problem p(dtype, n, v, turn % 3 == 0 ? 0 : turn % 7, scheme, 4.0F);
        p.rule.focal_detached = turn % 2 == 0;
        if (turn % 4 == 1) p.rule.gamma = 1.0F;
        if (turn % 3 != 1) p.rule.smoothing = 0.1F;
        if (turn % 5 < 2) p.rule.z_loss = 1e-3F;
        if (turn / 2 % 2 == 0) p.weigh_classes();
        check_problem(p, isa);
        if (scheme == CeScheme::kFocal) continue;
        p.make_soft(dtypes[turn % 3]);
        check_problem(p, isa);
      }
    }
  }
}

void test_threads_change_nothing(Isa isa) {
  for (const int64_t v : {2, 3, 17, 64, 300, 9001}) {
    Problem p(CeDtype::kFloat32, v > 1000 ? 21 : 40000 / v + 7, v, 1, CeScheme::kDimp, 4.0F);
    p.rule.smoothing = 0.1F;
    for (const Way way : {Way::kTwoPasses, Way::kFused, Way::kInPlace}) {
      const Results one = results_of(p, way, {1, isa}), two = results_of(p, way, {2, isa});
      CHECK(same_bits(one, two));
      CHECK(same_bits(one, results_of(p, way, {5, isa})));
    }
  }
}

/// Rows of the same columns repeated `times`, so that few and many columns both meet them.
void test_extreme_logits(Isa isa) {
  const float rows[][4] = {{1e4F, -1e4F, 0, 3},
                           {-1e4F, 1e4F, 0, 3},
                           {1e4F, 1e4F - 1, 1e4F - 2, 1e4F - 3},
                           {-1e4F, -1e4F - 1, -2e4F, -3e4F},
                           {20, 0, 1, -3},
                           {12, 0, 1, -3},
                           {2, 1, -kInf, -kInf},
                           {-kInf, -kInf, 1, 0},
                           {100, -kInf, 0, 0}};
  for (const int64_t v : {4, 100, 4100, 9000}) {
    for (const CeScheme scheme : {CeScheme::kPlain, CeScheme::kDimp, CeScheme::kFocal}) {
      Problem p(CeDtype::kFloat32, 9, v, 2, scheme, 1.0F);
      p.rule.gamma = 1.0F;
      for (int64_t i = 0; i < 9; ++i) {
        const auto row = static_cast<size_t>(i);
        for (int64_t j = 0; j < v; ++j) p.logits.put(i * p.logits.stride + j, j < 4 ? rows[row][j] : -kInf);
        // the four at the end of the row: the base must rise when they come
        if (i % 2 == 1) {
          for (int64_t j = 0; j < v; ++j)
            p.logits.put(i * p.logits.stride + j, j < v - 4 ? -kInf : rows[row][j - v + 4]);
        }
        p.target[row] = i % 2 == 1 ? v - 4 : 0;
        if (i == 7) p.target[row] += 2;
        p.upstream[row] = 1.0F;
        p.sample_weight[row] = 1.0F;
      }
      check_problem(p, isa);
    }
  }
}

/// A ramp, so that the largest logit moves from block to block, upwards or downwards.
void test_moving_top(Isa isa) {
  for (const float slope : {3.0F, 60.0F, 3000.0F, -3.0F, -60.0F, -3000.0F}) {
    Problem p(CeDtype::kFloat32, 3, 20001, 0, CeScheme::kPlain, 1.0F);
    p.target = {17, 19999, 10007};
    for (int64_t i = 0; i < 3; ++i) {
      for (int64_t j = 0; j < 20001; ++j)
        p.logits.put(i * 20001 + j, slope * static_cast<float>(j) / 20001.0F);
    }
    check_problem(p, isa);
  }
}

void test_what_is_not_a_number(Isa isa) {
  for (const int64_t v : {3, 20, 65, 5000}) {
    Problem p(CeDtype::kFloat32, 40, v, 0, CeScheme::kDimp, 1.0F);
    std::fill(p.target.begin(), p.target.end(), 1);
    std::fill(p.sample_weight.begin(), p.sample_weight.end(), 1.0F);
    for (int64_t i = 0; i < p.logits.rows * v; ++i) p.logits.put(i, normal());
    p.target[2] = v;  // no such column
    p.target[5] = -7;
    p.log_quality[9] = kNan;  // never turned into a bound
    p.logits.put(11 * v + v - 1, kNan);
    p.logits.put(13 * v + 1, kNan);
    p.logits.put(17 * v, kInf);
    for (int64_t j = 0; j < v; ++j) p.logits.put(19 * v + j, kNan);
    for (const Way way : {Way::kTwoPasses, Way::kFused}) {
      Results got = results_of(p, way, {1, isa});
      for (int64_t i = 0; i < 40; ++i) {
        const bool bad = i == 2 || i == 5 || i == 9 || i == 11 || i == 13 || i == 17 || i == 19;
        const auto row = static_cast<size_t>(i);
        CHECK((got.fields[row] != got.fields[row]) == bad);
        if (i == 2 || i == 5) {
          for (const int k : {kWeight, kLogProb, kA, kT}) {
            const float x = got.fields[static_cast<size_t>(k) * 40 + row];
            CHECK(x != x);
          }
        }
        for (int64_t j = 0; j < v; ++j) {
          const float g = got.gradient.get(i, j);
          CHECK((g != g) == (bad && p.upstream[row] == p.upstream[row]));
        }
      }
    }
  }
}

void test_masked_class_under_smoothing_is_infinite(Isa isa) {
  for (const int64_t v : {4, 70, 300, 9000}) {
    const auto hidden = static_cast<size_t>(v / 2);
    Problem p(CeDtype::kFloat32, 3, v, 0, CeScheme::kPlain, 1.0F);
    p.rule.smoothing = 0.1F;
    for (int64_t i = 0; i < 3 * v; ++i) p.logits.put(i, normal());
    p.target = {0, 1, 2};
    p.logits.put(v / 2, -kInf);  // another class
    p.logits.put(v + 1, -kInf);  // the target itself
    Results got = results_of(p, Way::kFused, {1, isa});
    CHECK(got.fields[0] == kInf && got.fields[1] == kInf && std::isfinite(got.fields[2]));
    p.class_weight.assign(static_cast<size_t>(v), 1.0F);
    p.class_weight[hidden] = 0.0F;  // hides the first row's
    got = results_of(p, Way::kFused, {1, isa});
    CHECK(std::isfinite(got.fields[0]) && got.fields[1] == kInf);
    CHECK(got.gradient.get(0, v / 2) == 0.0F);
  }
}

void test_nothing_at_all(Isa isa) {
  for (const auto& [n, v] : {std::pair<int64_t, int64_t>{0, 5}, {0, 5000}, {0, 0}, {9, 0}}) {
    Problem p(CeDtype::kBfloat16, n, std::max<int64_t>(v, 1), 0, CeScheme::kDimp, 1.0F);
    p.logits.columns = v;
    const Results got = results_of(p, Way::kTwoPasses, {2, isa});
    for (size_t i = 0; i < static_cast<size_t>(n); ++i) {
      CHECK(p.target[i] == kIgnored ? got.fields[i] == 0.0F : got.fields[i] != got.fields[i]);
    }
  }
}

/// A gradient large enough to be written past the caches, one upstream for all, every row the same memory.
void test_streams_and_zero_strides(Isa isa) {
  for (const CeDtype dtype : {CeDtype::kFloat32, CeDtype::kBfloat16, CeDtype::kFloat16}) {
    for (const int64_t v : {13, 9001}) {
      Problem p(dtype, 1, v, 0, CeScheme::kPlain, 3.0F);
      const int64_t rows = (10 << 20) / v;
      const std::vector<int64_t> target(static_cast<size_t>(rows), 3);
      p.target.assign(1, 3);
      p.upstream.assign(1, 0.37F);
      for (int64_t j = 0; j < v; ++j) p.logits.put(j, normal());
      CeMatrix view = p.logits.view();
      view.rows = rows;
      view.row_stride = 0;
      CeInputs in;
      in.target = target.data();
      std::vector<float> fields(static_cast<size_t>(kCeFields * rows), kNan);
      std::vector<int8_t> clipped(static_cast<size_t>(rows), 77);
      Matrix gradient(dtype, rows, v, 1);
      ce_fused(view, in, p.rule, {p.upstream.data(), 0}, {fields.data(), clipped.data()}, gradient.at(0),
               gradient.stride, {2, isa});
      Results small(p, 0);
      const Truth want = p.truth(0);
      bool all = true;
      for (int64_t i = 0; i < rows; ++i) {
        for (int64_t j = 0; j < v; ++j) small.gradient.put(j, gradient.get(i, j));
        for (int k = 0; k < kCeFields; ++k)
          small.fields[static_cast<size_t>(k)] = fields[static_cast<size_t>(k * rows + i)];
        small.clipped[0] = clipped[static_cast<size_t>(i)];
        if (i % 97 == 0 || i == rows - 1) all &= row_matches(p, small, 0, want);
        all &= gradient.get(i, v) != gradient.get(i, v);
      }
      CHECK(all);
    }
  }
}

}  // namespace

int main() {
  for (const Isa isa : {Isa::kPortable, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Bf16}) {
    if (isa > best_isa()) break;
    test_against_truth(isa);
    test_threads_change_nothing(isa);
    test_extreme_logits(isa);
    test_moving_top(isa);
    test_what_is_not_a_number(isa);
    test_masked_class_under_smoothing_is_infinite(isa);
    test_nothing_at_all(isa);
    test_streams_and_zero_strides(isa);
  }
  return report("weighted_ce");
}
