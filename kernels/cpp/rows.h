// What is done between products to every row by itself: RMS normalization, rotary positions, what follows a product, and
// the largest logit.
#pragma once

#include <cstdint>

#include "kernels.h"

namespace bombus {

// Each of `rows` rows (size,) over its root mean square, times offset + scale (size,). float32 or bfloat16.
struct Norm {
  const void* x = nullptr;
  const void* scale = nullptr;
  void* out = nullptr;
  Values x_kind = Values::kF32, scale_kind = Values::kF32, out_kind = Values::kF32;
  int64_t rows = 0, size = 0;
  float epsilon = 0.0f, offset = 0.0f;
};
void rms_norm(const Norm& call, Pool& pool);

// Heads (tokens, heads, size), in which the pairs of the first 2 * pairs dimensions are turned by the angles of their
// token: cos (tokens, pairs), and sin (tokens, 2, pairs), first negative and then positive. A pair is (i, i + pairs), or
// where they are interleaved (2 i, 2 i + 1). With a scale (size,) each head is normed before, as in Norm, and rounded.
struct Rotation {
  const void* x = nullptr;
  const float* cos = nullptr;
  const float* sin = nullptr;
  void* out = nullptr;
  Values kind = Values::kF32;  // of both; float32 or bfloat16
  int64_t tokens = 0, heads = 0, size = 0, pairs = 0;
  bool interleaved = false;
  const void* scale = nullptr;
  Values scale_kind = Values::kF32;
  float epsilon = 0.0f, offset = 0.0f;
};
void rotate(const Rotation& call, Pool& pool);

// The numbers that layers/activations.py has for them.
enum class Activation : int64_t { kNone, kSilu, kGeluTanh };

// What follows a product y (rows, size): its bias (size,) is added and the sum rounded to out_kind; the activation of it is
// taken and rounded; it is multiplied with a second product, to which the same was done but for the activation, and rounded;
// it is rounded to the type of the residual and added to it, and the sum is rounded. All but y may be missing.
struct Finish {
  struct Of {
    const float* y = nullptr;
    const void* bias = nullptr;
    Values bias_kind = Values::kF32;
  };
  Of one, other;
  Activation activation = Activation::kNone;
  const void* residual = nullptr;
  Values residual_kind = Values::kF32;
  void* out = nullptr;  // in residual_kind where there is a residual
  Values out_kind = Values::kF32;
  int64_t rows = 0, size = 0;
};

// Which of the numbers of each row x (rows, size) is the first of the largest ones; where some are none, the first of these.
void argmax(const float* x, int64_t rows, int64_t size, int32_t* out, Pool& pool);

}  // namespace bombus
