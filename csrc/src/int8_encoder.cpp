#include "obverse/int8_encoder.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>

#include "int8_encoder_kernels.hpp"
#include "memory.hpp"
#include "parallel.hpp"

namespace obverse {
namespace {

// Tokens that go through the layers together: a layer's weights (2 MB, say) are read from the shared cache once for so
// many, and their widest activations stay in a core's own.
constexpr int64_t kTokens = 96;

std::vector<float> copied(span<const float> values, int64_t size, const char* name) {
  require(static_cast<int64_t>(values.size()) == size, name, " must have ", size, " values, got ",
          values.size());
  return {values.begin(), values.end()};
}

/// Rounds weights [outputs, inputs] to int8, and lays them out as the kernel reads them.
Int8Linear quantised(const Int8LinearInput& from, int64_t outputs, int64_t inputs, const char* name) {
  constexpr int64_t kGroup = Int8Encoder::kGroup, kPanel = Int8Encoder::kPanel;
  const std::vector<float> weight = copied(from.weight, outputs * inputs, name);
  const int64_t panels = (outputs + kPanel - 1) / kPanel, groups = inputs / kGroup;
  Int8Linear linear;
  linear.inputs = inputs;
  linear.outputs = outputs;
  linear.bias = copied(from.bias, outputs, name);
  linear.bias.resize(static_cast<size_t>(panels * kPanel), 0.0F);
  linear.pre = from.pre.empty() ? std::vector<float>(static_cast<size_t>(inputs), 1.0F)
                                : copied(from.pre, inputs, name);
  linear.weight.assign(static_cast<size_t>(panels * kPanel * inputs), 0);
  linear.scale.assign(static_cast<size_t>(panels * kPanel * groups), 0.0F);
  linear.sum = linear.scale;
  for (int64_t n = 0; n < outputs; ++n) {
    for (int64_t g = 0; g < groups; ++g) {
      const float* const w = weight.data() + n * inputs + g * kGroup;
      float most = 0;
      for (int64_t k = 0; k < kGroup; ++k) most = std::max(most, std::abs(w[k]));
      const float scale = most / 127.0F;
      const int64_t at = (n / kPanel * groups + g) * kPanel + n % kPanel;
      int32_t total = 0;
      for (int64_t k = 0; k < kGroup; ++k) {
        const auto q = static_cast<int8_t>(scale > 0 ? std::lround(w[k] / scale) : 0);
        total += q;
        linear.weight[static_cast<size_t>(
            (((n / kPanel * groups + g) * (kGroup / 4) + k / 4) * kPanel + n % kPanel) * 4 + k % 4)] = q;
      }
      linear.scale[static_cast<size_t>(at)] = scale;
      linear.sum[static_cast<size_t>(at)] = scale * static_cast<float>(total);
    }
  }
  return linear;
}

const Int8Kernels& kernels() {
#if defined(OBVERSE_X86_64)
  return kInt8KernelsAvx512Vnni;
#else
  throw ValueError("the 8-bit encoder needs a processor with AVX-512 VNNI");
#endif
}

}  // namespace

bool int8_encoder_available() {
#if defined(OBVERSE_X86_64)
  return __builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("avx512bw") != 0 &&
         __builtin_cpu_supports("avx512dq") != 0 && __builtin_cpu_supports("avx512vl") != 0 &&
         __builtin_cpu_supports("avx512vnni") != 0;
#else
  return false;
#endif
}

/// One thread's memory for `tokens` tokens at once.
struct Int8Encoder::Scratch {
  Scratch(const Int8Encoder& encoder, int64_t tokens, int64_t longest) {
    const int64_t hidden = encoder.hidden_, widest = encoder.widest_, padded = (longest + 15) / 16 * 16;
    const int64_t groups = widest / kGroup;
    const int64_t floats = tokens * (2 * hidden + std::max(3 * hidden, widest) + 2 * groups) +
                           (hidden / encoder.heads_ + 4) * padded;
    memory = Memory(floats * 4 + tokens * widest);
    x = memory.as<float>();
    y = x + tokens * hidden;
    wide = y + tokens * hidden;
    scale = wide + tokens * std::max(3 * hidden, widest);
    least = scale + tokens * groups;
    attention = least + tokens * groups;
    q = reinterpret_cast<uint8_t*>(attention + (hidden / encoder.heads_ + 4) * padded);
  }
  Memory memory;
  float *x, *y, *wide, *scale, *least, *attention;
  uint8_t* q;
};

Int8Encoder::Int8Encoder(int64_t hidden, int64_t heads, float epsilon, span<const float> word,
                         span<const float> position, span<const float> gamma, span<const float> beta,
                         const std::vector<Int8LayerInput>& layers)
    : hidden_(hidden), heads_(heads), epsilon_(epsilon) {
  require(int8_encoder_available(), "the 8-bit encoder needs a processor with AVX-512 VNNI");
  require(hidden > 0 && hidden % kGroup == 0, "hidden must be a multiple of ", kGroup, ", got ", hidden);
  require(heads > 0 && hidden % heads == 0 && hidden / heads % 16 == 0,
          "a head's width must be a multiple of 16, got ", hidden, " / ", heads);
  words_ = static_cast<int64_t>(word.size()) / hidden;
  positions_ = static_cast<int64_t>(position.size()) / hidden;
  require(words_ > 0 && positions_ > 0, "word and position must hold vectors");
  word_ = copied(word, words_ * hidden, "word");
  position_ = copied(position, positions_ * hidden, "position");
  gamma_ = copied(gamma, hidden, "gamma");
  beta_ = copied(beta, hidden, "beta");
  widest_ = hidden;
  for (const Int8LayerInput& from : layers) {
    const auto inner = static_cast<int64_t>(from.inner.bias.size());
    require(inner > 0 && inner % kGroup == 0, "inner must be a multiple of ", kGroup, ", got ", inner);
    widest_ = std::max(widest_, inner);
    Layer layer;
    layer.qkv = quantised(from.qkv, 3 * hidden, hidden, "qkv");
    layer.attention_out = quantised(from.attention_out, hidden, hidden, "attention_out");
    layer.inner = quantised(from.inner, inner, hidden, "inner");
    layer.outer = quantised(from.outer, hidden, inner, "outer");
    layer.attention_gamma = copied(from.attention_gamma, hidden, "attention_gamma");
    layer.attention_beta = copied(from.attention_beta, hidden, "attention_beta");
    layer.outer_gamma = copied(from.outer_gamma, hidden, "outer_gamma");
    layer.outer_beta = copied(from.outer_beta, hidden, "outer_beta");
    layers_.push_back(std::move(layer));
  }
}

void Int8Encoder::multiply(const Int8Linear& linear, const float* x, int64_t rows, float* y,
                           Scratch& scratch) const {
  const Int8Kernels& k = kernels();
  const int64_t groups = linear.inputs / kGroup;
  k.quantise(x, linear.pre.data(), rows, linear.inputs, scratch.q, scratch.scale, scratch.least);
  for (int64_t n = 0; n < linear.outputs; n += kPanel) {
    k.multiply(scratch.q, scratch.scale, scratch.least, rows, linear.inputs,
               linear.weight.data() + n * linear.inputs, linear.scale.data() + n * groups,
               linear.sum.data() + n * groups, linear.bias.data() + n, std::min(kPanel, linear.outputs - n),
               y + n, linear.outputs);
  }
}

void Int8Encoder::encode_some(span<const int32_t> ids, span<const int64_t> starts, int64_t first,
                              int64_t last, Int8Pooling pooling, float* out, Scratch& s) const {
  const Int8Kernels& k = kernels();
  const int64_t base = starts[static_cast<size_t>(first)];
  const int64_t rows = starts[static_cast<size_t>(last)] - base;
  const auto each = [&](const auto& body) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t at = starts[static_cast<size_t>(i)] - base;
      body(i, at, starts[static_cast<size_t>(i) + 1] - base - at);
    }
  };
  each([&](int64_t, int64_t at, int64_t tokens) {
    for (int64_t t = 0; t < tokens; ++t) {
      const float* const word = word_.data() + int64_t{ids[static_cast<size_t>(base + at + t)]} * hidden_;
      const float* const position = position_.data() + t * hidden_;
      float* const x = s.x + (at + t) * hidden_;
      for (int64_t i = 0; i < hidden_; ++i) x[i] = word[i] + position[i];
    }
  });
  k.add_norm(s.x, nullptr, rows, hidden_, gamma_.data(), beta_.data(), epsilon_);
  for (const Layer& layer : layers_) {
    multiply(layer.qkv, s.x, rows, s.wide, s);
    each([&](int64_t, int64_t at, int64_t tokens) {
      k.attention(s.wide + at * 3 * hidden_, tokens, heads_, hidden_ / heads_, s.y + at * hidden_,
                  s.attention);
    });
    multiply(layer.attention_out, s.y, rows, s.wide, s);
    k.add_norm(s.x, s.wide, rows, hidden_, layer.attention_gamma.data(), layer.attention_beta.data(),
               epsilon_);
    multiply(layer.inner, s.x, rows, s.wide, s);
    k.gelu(s.wide, rows * layer.inner.outputs);
    multiply(layer.outer, s.wide, rows, s.y, s);
    k.add_norm(s.x, s.y, rows, hidden_, layer.outer_gamma.data(), layer.outer_beta.data(), epsilon_);
  }
  each([&](int64_t i, int64_t at, int64_t tokens) {
    k.unit_mean(s.x + at * hidden_, pooling == Int8Pooling::kFirst ? 1 : tokens, hidden_, out + i * hidden_);
  });
}

void Int8Encoder::encode(span<const int32_t> ids, span<const int64_t> starts, Int8Pooling pooling,
                         span<float> out, int threads) const {
  const Ragged<int32_t> texts(ids, starts);
  const int64_t count = static_cast<int64_t>(starts.size()) - 1;
  require(static_cast<int64_t>(out.size()) == count * hidden_, "out must have ", count * hidden_,
          " values, got ", out.size());
  int64_t longest = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t tokens = starts[static_cast<size_t>(i) + 1] - starts[static_cast<size_t>(i)];
    require(tokens > 0 && tokens <= positions_, "text ", i, " must have 1 to ", positions_, " tokens, got ",
            tokens);
    longest = std::max(longest, tokens);
  }
  for (const int32_t id : ids) {
    require(id >= 0 && id < words_, "ids must lie in [0, ", words_, "), got ", id);
  }
  std::vector<int64_t> cuts{0};  // texts of one pass through the layers
  for (int64_t i = 1; i <= count; ++i) {
    const int64_t from = starts[static_cast<size_t>(cuts.back())];
    const bool full = i < count && starts[static_cast<size_t>(i) + 1] - from > kTokens;
    if (i == count || full) cuts.push_back(i);
  }
  if (count == 0) return;
  const auto passes = static_cast<int64_t>(cuts.size()) - 1;
  std::atomic<int64_t> next{0};
  const int64_t workers = std::min<int64_t>(std::max(threads, 1), passes);
  parallel_for(static_cast<int>(workers), workers, 1, [&](int64_t, int64_t, int) {
    Scratch scratch(*this, std::max(kTokens, longest), longest);
    for (int64_t pass = next++; pass < passes; pass = next++) {
      encode_some(ids, starts, cuts[static_cast<size_t>(pass)], cuts[static_cast<size_t>(pass) + 1], pooling,
                  out.data(), scratch);
    }
  });
}

}  // namespace obverse
