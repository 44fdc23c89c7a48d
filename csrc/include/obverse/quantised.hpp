// Vectors as the joins see them: checked norms, int8 rows with a proved error, and exact cosines of given pairs.
//
// The cosine of rows x and z is one number whatever the processor or the order of work: their inner product is summed
// in double in sixteen lanes (lane l takes the columns l, l + 16, ...; products of two float32 are exact in double),
// the lanes are added pairwise (8, 4, 2, 1 apart), divided by the product of the two norms, and rounded once to float.
//
// Quantised rows: y = R^T x / |x| with R near orthogonal, q = round(y / a) in [-127, 127], and an `error` b with
//
//   |s(x, z) - a^2 <q_x, q_z>| <= b_x + b_z        for all rows x, z (docs/exactness.md has the proof)
//
// where s is the cosine as defined above, its rounding to float included.
#pragma once

#include <cstdint>

namespace obverse {

/// What the kernels of the joins may use. A caller may lower it, never raise it: `best_vector_isa()` bounds it.
enum class VectorIsa : int32_t { kPortable = 0, kAvx2 = 1, kAvx512Vnni = 2 };

/// The best of them that this processor and operating system run.
VectorIsa best_vector_isa();

enum class VectorDtype : int32_t { kFloat32 = 0, kFloat16 = 1 };

/// A row-major matrix without gaps.
struct Vectors {
  const void* data = nullptr;
  VectorDtype dtype = VectorDtype::kFloat32;
  int64_t rows = 0;
  int64_t columns = 0;
};

struct VectorRun {
  int threads = 1;
  VectorIsa isa = VectorIsa::kAvx512Vnni;  // an upper bound
};

/// norms[i] = |x_i| in double. Returns the first row with a value that is not finite or with nothing but zeros
/// (its norm is then NaN or 0), or -1 where every row is sound.
int64_t vector_norms(const Vectors& x, double* norms, const VectorRun& run);

/// How rows become int8: y = R^T x / |x|, q = round(y / scale).
struct Rotation {
  const float* matrix = nullptr;  // R, row-major [columns, width]; columns from `columns` on are 0
  int64_t columns = 0;
  int64_t width = 0;    // a multiple of 64, at least `columns`
  double scale = 1.0;   // a
  double defect = 0.0;  // an upper bound of |R R^T - I|_2
};

/// q [N, width] int8 and error [N] (the b above, rounded up). Norms as vector_norms gave them.
void quantise_rows(const Vectors& x, const double* norms, const Rotation& rotation, int8_t* q, float* error,
                   const VectorRun& run);

/// For each row of x the k best of its candidates [N, m] among the rows of y: by falling cosine, equal cosines by
/// row number. Candidates outside [0, M), repeated ones and, if `self`, the row itself are left out. Empty places at
/// the end get -1 and -infinity.
void rank_candidates(const Vectors& x, const double* x_norms, const Vectors& y, const double* y_norms,
                     const int32_t* candidates, int64_t m, bool self, int64_t k, int32_t* indices,
                     float* similarities, const VectorRun& run);

}  // namespace obverse
