// Loops that compilers vectorize for any processor: these rows are in its caches, and short beside the weights.
#include "rows.h"

#include <cmath>
#include <vector>

#include "numbers.h"
#include "parallel.h"

namespace bombus {
namespace {

constexpr int64_t kValuesOfPart = 1 << 15;  // fewer are done before another thread is awake

inline float value(const float* from, int64_t at) { return from[at]; }
inline float value(const uint16_t* from, int64_t at) { return widened(from[at]); }
inline void put(float* to, int64_t at, float value) { to[at] = value; }
inline void put(uint16_t* to, int64_t at, float value) { to[at] = bfloat16(value); }

// body(first, last) for all rows, in parts of several where they are many.
template <class Body>
void for_rows(Pool& pool, int64_t rows, int64_t size, const Body& body) {
  const int64_t part = size >= kValuesOfPart ? 1 : kValuesOfPart / size;
  parallel(pool, (rows + part - 1) / part, [&](int64_t index) {
    body(index * part, (index + 1) * part < rows ? (index + 1) * part : rows);
  });
}

// One row of a norm.
template <class X, class Scale, class Out>
void norm_row(const X* x, const Scale* scale, int64_t size, float epsilon, float offset, Out* out) {
  constexpr int64_t kLanes = 16, kBlock = 1024;
  double sum = 0.0;  // of blocks, so that long rows are as exact as short ones
  for (int64_t begin = 0; begin < size; begin += kBlock) {
    const int64_t end = begin + kBlock < size ? begin + kBlock : size, whole = end - (end - begin) % kLanes;
    float lanes[kLanes] = {};
    for (int64_t at = begin; at < whole; at += kLanes)
      for (int lane = 0; lane < kLanes; ++lane) lanes[lane] += value(x, at + lane) * value(x, at + lane);
    for (int64_t at = whole; at < end; ++at) lanes[at - whole] += value(x, at) * value(x, at);
    for (const float lane : lanes) sum += static_cast<double>(lane);
  }
  const float mean = static_cast<float>(sum / static_cast<double>(size));
  const float factor = 1.0f / std::sqrt(mean + epsilon);
  for (int64_t at = 0; at < size; ++at) put(out, at, value(x, at) * factor * (offset + value(scale, at)));
}

template <class X, class Scale, class Out>
void norm(const Norm& call, Pool& pool) {
  const int64_t size = call.size;
  for_rows(pool, call.rows, size, [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row)
      norm_row(static_cast<const X*>(call.x) + row * size, static_cast<const Scale*>(call.scale), size, call.epsilon,
               call.offset, static_cast<Out*>(call.out) + row * size);
  });
}

template <class X, class Scale>
void norm_to(const Norm& call, Pool& pool) {
  call.out_kind == Values::kF32 ? norm<X, Scale, float>(call, pool) : norm<X, Scale, uint16_t>(call, pool);
}

template <class X>
void norm_by(const Norm& call, Pool& pool) {
  call.scale_kind == Values::kF32 ? norm_to<X, float>(call, pool) : norm_to<X, uint16_t>(call, pool);
}

template <class X>
void turn(const Rotation& call, Pool& pool) {
  const int64_t size = call.size, pairs = call.pairs;
  // The two of a pair are so far from each other, and pairs.
  const int64_t apart = call.interleaved ? 1 : pairs, step = call.interleaved ? 2 : 1;
  for_rows(pool, call.tokens * call.heads, size, [&](int64_t first, int64_t last) {
    std::vector<X> normed(static_cast<size_t>(call.scale ? size : 0));
    for (int64_t row = first; row < last; ++row) {
      const int64_t token = row / call.heads;
      const X* x = static_cast<const X*>(call.x) + row * size;
      if (call.scale) {
        if (call.scale_kind == Values::kF32)
          norm_row(x, static_cast<const float*>(call.scale), size, call.epsilon, call.offset, normed.data());
        else
          norm_row(x, static_cast<const uint16_t*>(call.scale), size, call.epsilon, call.offset, normed.data());
        x = normed.data();
      }
      X* out = static_cast<X*>(call.out) + row * size;
      const float *cos = call.cos + token * pairs, *sin = call.sin + (2 * token + 1) * pairs;
      for (int64_t pair = 0; pair < pairs; ++pair) {
        const float one = value(x, pair * step), other = value(x, pair * step + apart);
        put(out, pair * step, one * cos[pair] - other * sin[pair]);
        put(out, pair * step + apart, other * cos[pair] + one * sin[pair]);
      }
      for (int64_t at = 2 * pairs; at < size; ++at) out[at] = x[at];
    }
  });
}

}  // namespace

void rms_norm(const Norm& call, Pool& pool) {
  if (call.rows == 0 || call.size == 0) return;
  call.x_kind == Values::kF32 ? norm_by<float>(call, pool) : norm_by<uint16_t>(call, pool);
}

void rotate(const Rotation& call, Pool& pool) {
  if (call.tokens * call.heads * call.size == 0) return;
  call.kind == Values::kF32 ? turn<float>(call, pool) : turn<uint16_t>(call, pool);
}

}  // namespace bombus
