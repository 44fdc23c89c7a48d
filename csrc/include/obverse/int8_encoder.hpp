// A BERT-like sentence encoder in 8-bit integers: texts as token ids in, unit vectors out.
//
// Weights [out, in] are int8 with a scale for each output and group of 64 inputs; activations uint8 with a scale and a
// least value for each token and group. Products are summed exactly, in 32-bit integers within a group and in float
// over the groups in order; everything else (attention, layer norms, GELU by the erf) is float. Tokens of several texts
// share the products with the weights, without padding, and no arithmetic of one text depends on another: a text's
// vector is the same bytes whatever it is encoded with, and on any number of threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "obverse/span.hpp"

namespace obverse {

/// Whether this processor can run the encoder (AVX-512 with VNNI).
bool int8_encoder_available();

/// A linear layer y = W (x * pre) + bias as the encoder takes it.
struct Int8LinearInput {
  span<const float> weight;  // [outputs, inputs]
  span<const float> bias;    // [outputs]
  span<const float>
      pre;  // [inputs], or empty for ones: what inputs are multiplied by before they are rounded
};

/// One layer; the norms come after the residual sums, as in BERT.
struct Int8LayerInput {
  Int8LinearInput qkv;  // queries, keys and values, [3 hidden, hidden]
  Int8LinearInput attention_out;
  span<const float> attention_gamma, attention_beta;  // [hidden]
  Int8LinearInput inner, outer;                       // [inner, hidden] and [hidden, inner]
  span<const float> outer_gamma, outer_beta;
};

struct Int8Linear {
  int64_t inputs = 0, outputs = 0;  // outputs padded to whole panels
  std::vector<int8_t> weight;       // [panel][group][16 steps of 4 inputs][kPanel outputs][4]
  std::vector<float> scale,
      sum;  // [panel][group][kPanel]: scale, and scale times the sum of the group's weights
  std::vector<float> bias, pre;  // [outputs], [inputs]
};

enum class Int8Pooling { kMean, kFirst };

class Int8Encoder {
 public:
  static constexpr int64_t kGroup = 64, kPanel = 48;

  /// `word` [words, hidden], `position` [positions, hidden] (with the token type's vector in it). Throws ValueError for
  /// sizes that don't fit: hidden and inner must be multiples of 64, a head's width of 16.
  Int8Encoder(int64_t hidden, int64_t heads, float epsilon, span<const float> word,
              span<const float> position, span<const float> gamma, span<const float> beta,
              const std::vector<Int8LayerInput>& layers);

  int64_t hidden() const { return hidden_; }
  int64_t positions() const { return positions_; }

  /// out [texts, hidden] = unit vectors of texts whose tokens are ids[starts[i], starts[i + 1]). Throws ValueError for
  /// a text without tokens or longer than positions(), or an id that is no word.
  void encode(span<const int32_t> ids, span<const int64_t> starts, Int8Pooling pooling, span<float> out,
              int threads) const;

 private:
  struct Layer {
    Int8Linear qkv, attention_out, inner, outer;
    std::vector<float> attention_gamma, attention_beta, outer_gamma, outer_beta;
  };
  struct Scratch;
  void encode_some(span<const int32_t> ids, span<const int64_t> starts, int64_t first, int64_t last,
                   Int8Pooling pooling, float* out, Scratch& scratch) const;
  void multiply(const Int8Linear& linear, const float* x, int64_t rows, float* y, Scratch& scratch) const;

  int64_t hidden_, heads_, words_, positions_, widest_ = 0;
  float epsilon_;
  std::vector<float> word_, position_, gamma_, beta_;
  std::vector<Layer> layers_;
};

}  // namespace obverse
