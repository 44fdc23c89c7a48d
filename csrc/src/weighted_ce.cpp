// Weighted cross-entropy: rows to threads, memory to the kernels of this processor.
#include "obverse/weighted_ce.hpp"

#include <algorithm>
#include <memory>

#include "ce_kernels.hpp"
#include "parallel.hpp"

namespace obverse {
namespace {

/// A gradient of this size is out of the caches before anyone reads it: it is written past them.
constexpr int64_t kStreamBytes = 8 << 20;
/// Elements that pay for waking a thread.
constexpr int64_t kGrain = 16384;

int64_t element_bytes(CeDtype dtype) { return dtype == CeDtype::kFloat32 ? 4 : 2; }

float class_total(const CeJob& job) {
  if (job.in.class_weight == nullptr) return static_cast<float>(job.logits.columns);
  if (job.rule.smoothing <= 0.0F) return 0.0F;  // nobody asks
  double sum = 0.0;
  for (int64_t j = 0; j < job.logits.columns; ++j) sum += static_cast<double>(job.in.class_weight[j]);
  return static_cast<float>(sum);
}

void place_gradient(CeJob& job, void* gradient, int64_t stride) {
  job.gradient = gradient;
  job.gradient_stride = stride;
  const int64_t bytes = job.logits.rows * stride * element_bytes(job.logits.dtype);
  if (gradient == job.logits.data) return;
  job.stream = bytes >= kStreamBytes;
}

void run_job(CeJob& job, void (*CeKernels::*pass)(const CeJob&, int64_t, int64_t, float*), const CeRun& run) {
  job.class_total = class_total(job);
  const auto kernel = ce_kernels(run.isa).*pass;
  const int64_t columns = job.logits.columns;
  // Whole groups of rows, so that a lane is not left idle at each share's end.
  const int64_t rows = std::max<int64_t>(kGrain / std::max<int64_t>(columns, 1), 1);
  const int64_t grain = columns <= 2048 ? (rows + kCeGroup - 1) / kCeGroup * kCeGroup : rows;
  parallel_for(run.threads, job.logits.rows, grain, [&](int64_t first, int64_t last, int) {
    const auto scratch =
        std::make_unique_for_overwrite<float[]>(static_cast<size_t>(ce_scratch_floats(columns)));
    kernel(job, first, last, scratch.get());
  });
}

}  // namespace

void ce_forward(const CeMatrix& logits, const CeInputs& in, const CeRule& rule, const CeOutputs& out,
                const CeRun& run) {
  CeJob job;
  job.logits = logits;
  job.in = in;
  job.rule = rule;
  job.out = out;
  run_job(job, &CeKernels::forward, run);
}

void ce_backward(const CeMatrix& logits, const CeInputs& in, const CeRule& rule, const float* fields,
                 const CeUpstream& upstream, void* gradient, int64_t gradient_stride, const CeRun& run) {
  CeJob job;
  job.logits = logits;
  job.in = in;
  job.rule = rule;
  job.fields = fields;
  job.upstream = upstream;
  place_gradient(job, gradient, gradient_stride);
  run_job(job, &CeKernels::backward, run);
}

void ce_fused(const CeMatrix& logits, const CeInputs& in, const CeRule& rule, const CeUpstream& upstream,
              const CeOutputs& out, void* gradient, int64_t gradient_stride, const CeRun& run) {
  CeJob job;
  job.logits = logits;
  job.in = in;
  job.rule = rule;
  job.upstream = upstream;
  job.out = out;
  place_gradient(job, gradient, gradient_stride);
  run_job(job, &CeKernels::fused, run);
}

int64_t ce_count(const int64_t* target, int64_t rows, int64_t ignore_index) {
  int64_t count = 0;
  for (int64_t i = 0; i < rows; ++i) count += target[i] != ignore_index;
  return count;
}

double ce_sum(const float* figures, int64_t count) {
  // Eight sums at once: one alone would wait for each addition.
  double part[8] = {};
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    for (int k = 0; k < 8; ++k) part[k] += static_cast<double>(figures[i + k]);
  }
  for (; i < count; ++i) part[0] += static_cast<double>(figures[i]);
  return ((part[0] + part[1]) + (part[2] + part[3])) + ((part[4] + part[5]) + (part[6] + part[7]));
}

}  // namespace obverse
