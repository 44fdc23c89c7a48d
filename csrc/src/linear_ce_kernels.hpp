// The fused linear layer's kernels, once for every instruction set; csrc/src/linear_ce.cpp drives them.
//
// Everything is vocabulary-major: a block of rows of the head is read where it lies, against a chunk of hidden
// rows that is packed once. In cells of 32 bits (a float, or two bfloat16 along the summed axis), P wide panels:
//
//   logits^T  [block, R] = head [block, D] X^T         x_columns [R / P][D][P]
//   d head    [block, D] += dZ^T [block, R] X          x_rows    [D / P][R][P]
//   d hidden  [R, D]     += dZ [R, block] head         head_pack [D / P][block][P]
//
// Lanes are hidden rows in the first product, so that a row's maximum and sums need no sums across lanes.
#pragma once

#include <cstdint>

#include "obverse/weighted_ce.hpp"

namespace obverse {

/// One chunk of hidden rows as all threads see it. R is `rows` rounded up to whole panels; the rows behind
/// `rows` are zeros, and their gradients too.
struct LinearCeChunk {
  const void* head = nullptr;
  const void* bias = nullptr;
  int64_t head_stride = 0, vocab = 0, depth = 0;
  int64_t rows = 0, padded_rows = 0;
  int64_t block = 0;                       // head rows a block, a multiple of the tile and even
  const void* const* hidden = nullptr;     // [rows]: where each hidden row lies
  void* const* hidden_gradient = nullptr;  // [rows] where each goes, or null
  void* x_columns = nullptr;
  void* x_rows = nullptr;
  // exp(z - what was the maximum then) [blocks][R / P][block][P], float or bfloat16, 0 for targets; null: loss
  // only. Exponentials, for they round to bfloat16 with a relative error; a logit's would be a share of its size.
  void* kept = nullptr;
  float* kept_tops = nullptr;           // [blocks][R]: that maximum
  const int32_t* target = nullptr;      // [R], -1: none
  const float* class_weight = nullptr;  // [V] or null
  bool spread = false;                  // the sums for label smoothing are wanted
  // [R] each, for the gradient: g a / sum of exponentials; g b; g t
  const float *top = nullptr, *scale = nullptr, *share = nullptr, *at_target = nullptr;
  void* head_gradient = nullptr;  // [V, D] or null
  uint8_t* head_low = nullptr;    // [V / 2, D]: four bits below a bfloat16 gradient's while chunks are summed
  float* bias_sums = nullptr;     // [V] or null
  bool first = true, last = true;
};

/// What one thread finds in its share of the vocabulary, a value a row [R].
struct LinearCeSums {
  float *top = nullptr, *sum = nullptr, *sum_rest = nullptr;  // others' maximum, sum of exponentials (Kahan)
  float *dot = nullptr, *dot_rest = nullptr, *pivot = nullptr;  // sum of c_j (z_j - pivot), j != y
  float* z_y = nullptr;                                         // NaN where the target lies in another share
};

/// A thread's own memory.
struct LinearCeThread {
  LinearCeSums sums;
  float* tile = nullptr;         // [block][P]
  float* head_block = nullptr;   // [block][cells of D] where the head can't be read in place, else null
  float* head_pack = nullptr;    // [D / P][block][P]
  float* gradient = nullptr;     // bfloat16 pairs along the vocabulary [R / P][block / 2][P], else null
  float* hidden_sums = nullptr;  // [D / P][R][P]
};

struct LinearCeKernels {
  int tile = 0;        // rows of a register tile
  int panel = 0;       // P
  bool pairs = false;  // two bfloat16 a cell; exponentials are then kept in bfloat16
  void (*pack)(const LinearCeChunk& chunk, int64_t first_panel, int64_t last_panel);
  /// Exponentials and sums of the blocks [first, last).
  void (*forward)(const LinearCeChunk& chunk, const LinearCeThread& own, int64_t first, int64_t last);
  /// Gradients from what `forward` kept of the blocks [first, last), which is overwritten.
  void (*backward)(const LinearCeChunk& chunk, const LinearCeThread& own, int64_t first, int64_t last);
  /// The hidden gradient of the chunk's rows [first, last): the threads' sums, joined in their order.
  void (*join)(const LinearCeChunk& chunk, const LinearCeThread* threads, int count, int64_t first,
               int64_t last);
};

struct LinearCeTable {
  LinearCeKernels of_float32, of_bfloat16;
};

extern const LinearCeTable kLinearCePortable;
extern const LinearCeTable kLinearCeAvx2;
extern const LinearCeTable kLinearCeAvx512;
extern const LinearCeKernels kLinearCeAvx512Bf16;  // bfloat16 only

}  // namespace obverse
