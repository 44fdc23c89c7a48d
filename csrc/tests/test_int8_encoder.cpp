#include <cmath>
#include <vector>

#include "check.hpp"
#include "obverse/int8_encoder.hpp"
#include "obverse/random.hpp"

using namespace obverse;
using obverse::testing::throws;

namespace {

constexpr int64_t kHidden = 64, kInner = 128, kHeads = 2, kWords = 20, kPositions = 40;

class Weights {
 public:
  explicit Weights(uint64_t seed) : random_(seed, 0) {}
  span<const float> draw(int64_t count, float scale) {
    std::vector<float> values(static_cast<size_t>(count));
    for (float& x : values) x = scale * (static_cast<float>(random_.next() % 2001) / 1000.0F - 1.0F);
    return kept_.emplace_back(std::move(values));
  }
  Int8LinearInput linear(int64_t outputs, int64_t inputs) {
    return {draw(outputs * inputs, 0.2F), draw(outputs, 0.1F), {}};
  }
  Int8LayerInput layer() {
    return {linear(3 * kHidden, kHidden), linear(kHidden, kHidden), draw(kHidden, 1), draw(kHidden, 1),
            linear(kInner, kHidden),      linear(kHidden, kInner),  draw(kHidden, 1), draw(kHidden, 1)};
  }

 private:
  KeyedRandom random_;
  std::vector<std::vector<float>> kept_;  // a vector that moves keeps its memory, and the spans with it
};

Int8Encoder encoder(uint64_t seed) {
  Weights weights(seed);
  const std::vector<Int8LayerInput> layers{weights.layer(), weights.layer()};
  return {kHidden,
          kHeads,
          1e-6F,
          weights.draw(kWords * kHidden, 1),
          weights.draw(kPositions * kHidden, 1),
          weights.draw(kHidden, 1),
          weights.draw(kHidden, 1),
          layers};
}

std::vector<float> encode(const Int8Encoder& encoder, const std::vector<int32_t>& ids,
                          const std::vector<int64_t>& starts, int threads) {
  std::vector<float> out((starts.size() - 1) * kHidden);
  encoder.encode(ids, starts, Int8Pooling::kMean, out, threads);
  return out;
}

void test_a_text_alone_and_in_company() {
  const Int8Encoder model = encoder(3);
  KeyedRandom random(4, 0);
  std::vector<int32_t> ids;
  std::vector<int64_t> starts{0};
  for (int64_t tokens = 1; tokens <= kPositions; ++tokens) {
    for (int64_t i = 0; i < tokens; ++i) ids.push_back(static_cast<int32_t>(random.next() % kWords));
    starts.push_back(static_cast<int64_t>(ids.size()));
  }
  const std::vector<float> all = encode(model, ids, starts, 1);
  CHECK(all == encode(model, ids, starts, 4));
  for (size_t text = 0; text + 1 < starts.size(); ++text) {
    const std::vector<int32_t> own(ids.begin() + starts[text], ids.begin() + starts[text + 1]);
    const std::vector<float> alone = encode(model, own, {0, static_cast<int64_t>(own.size())}, 1);
    double squares = 0;
    for (size_t i = 0; i < kHidden; ++i) {
      CHECK(alone[i] == all[text * kHidden + i]);
      squares += double{alone[i]} * alone[i];
    }
    CHECK(std::abs(squares - 1) < 1e-5);
  }
}

void test_refusals() {
  const Int8Encoder model = encoder(3);
  CHECK(throws<ValueError>([&] { encode(model, {kWords}, {0, 1}, 1); }, "ids must lie in"));
  CHECK(throws<ValueError>([&] { encode(model, {1}, {0, 1, 1}, 1); }, "text 1 must have"));
  CHECK(throws<ValueError>([&] { encode(model, {1, 1}, {0, 1}, 1); }, "offsets must end"));
  CHECK(encode(model, {}, {0}, 1).empty());
}

}  // namespace

int main() {
  if (int8_encoder_available()) {
    test_a_text_alone_and_in_company();
    test_refusals();
  } else {
    CHECK(throws<ValueError>([] { encoder(3); }, "VNNI"));
  }
  return obverse::testing::report("int8_encoder");
}
