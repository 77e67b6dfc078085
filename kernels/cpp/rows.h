// What is done between products to every row by itself: RMS normalization and rotary positions.
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

}  // namespace bombus
