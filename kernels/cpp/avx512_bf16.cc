// Kernels for AVX-512 VBMI and BF16: few rows of bfloat16, whose products with decoded codes are exact. All else is left
// to AVX-512; integers too, which it decodes faster than they are looked up here.
#include <cstdint>
#include <cstring>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#include "kernels.h"
#include "lines.h"
#include "running.h"
#include "stored.h"
#include "target.h"

#if defined(BOMBUS_BF16)
#include BOMBUS_INTRINSICS

BOMBUS_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512bf16,avx2,fma")
namespace bombus {
namespace avx512_bf16 {

#include "avx512.inc"
#include "bf16.inc"

// Values in pairs, whose products go to one lane.
struct Isa : Floats {
  static constexpr int kWords = 32;
  // A sum for each of eight rows and one of what a scale is for; products of other steps fill the wait for an addition.
  static constexpr int kTogether = 8, kChains = 1;
  using V = __m512i;
  using Word = uint16_t;
  static uint16_t word(float value) { return bfloat16(value); }
  static V words(const uint16_t* from) { return _mm512_loadu_si512(from); }
  static F dot(V weights, V x, F sum) { return _mm512_dpbf16_ps(sum, (__m512bh)weights, (__m512bh)x); }
};

#include "product.inc"

// Whether a sum of pairs takes no longer than one of single numbers: so on AMD's processors. On Intel's it takes four times
// as long, and few rows of floats are all that pairs are better for.
inline bool fast_pairs() {
#if defined(BOMBUS_EMULATED)
  return true;
#else
  static const bool fast = __builtin_cpu_is("amd");
  return fast;
#endif
}

// Vectors in place of tiles. In a sum each lane is a row of x, and pairs of the weight are broadcast to all lanes; or where 16
// rows are alone, two pairs to the lanes of eight rows, as to broadcast takes longer than to multiply once.
class Unit {
 public:
  static constexpr int64_t kOutputs = 16, kSteps = 16;

  static int64_t columns(int64_t) { return kSide; }
  explicit Unit(int64_t) {}

  // 16 rows of 16 pairs as a tile of x.
  static void arrange(__m512i* rows, bool alone, int64_t, uint8_t* out) {
    if (alone) {
      transpose_pairs(rows);
      transpose_pairs(rows + kSide / 2);
      for (int64_t two = 0; two < kSide / 2; ++two) {
        _mm512_storeu_si512(out + two * 128, rows[two]);
        _mm512_storeu_si512(out + two * 128 + 64, rows[kSide / 2 + two]);
      }
    } else {
      transpose(rows);
      for (int64_t pair = 0; pair < kSide; ++pair) _mm512_storeu_si512(out + pair * 64, rows[pair]);
    }
  }

  template <int M, int N>
  void multiply(const uint8_t* weights, int64_t next_weights, const uint8_t* x, int64_t next_x, int64_t depth,
                const float* const* scale, int64_t column, float* sums, int64_t next_sums) const {
    constexpr int W = 8;  // rows of the weight: 16 sums, which is as many as wait for each other
    constexpr int64_t kSize = N == 2 ? 64 : 128;
    const uint8_t* const others = N == 2 ? x + next_x : x + 64;
    for (int64_t row = 0; row < M * kSide; row += W) {
      const uint8_t* left = weights + row / kSide * next_weights + row % kSide * 64;
      __m512 totals[W][2];
#pragma GCC unroll 8
      for (int w = 0; w < W; ++w) totals[w][0] = totals[w][1] = _mm512_setzero_ps();
      for (int64_t at = 0; at < depth; ++at)
        for (int64_t byte = 0; byte < kTile; byte += kSize) {
          const __m512i one = _mm512_loadu_si512(x + at * kTile + byte), other = _mm512_loadu_si512(others + at * kTile + byte);
#pragma GCC unroll 8
          for (int w = 0; w < W; ++w) {
            const uint8_t* pairs = left + at * kTile + w * 64;
            const __m512i both = N == 2 ? _mm512_set1_epi32(read<int32_t>(pairs, byte / kSize))
                                        : _mm512_set1_epi64(read<int64_t>(pairs, byte / kSize));
            totals[w][0] = _mm512_dpbf16_ps(totals[w][0], (__m512bh)both, (__m512bh)one);
            totals[w][1] = _mm512_dpbf16_ps(totals[w][1], (__m512bh)both, (__m512bh)other);
          }
        }
      float* to = sums + row / kSide * next_sums + row % kSide * kSide;
#pragma GCC unroll 8
      for (int w = 0; w < W; ++w, to += kSide) {
        const __m512 factor = _mm512_set1_ps(scale[row + w][column]);
        if constexpr (N == 2) {
          add(totals[w][0], factor, to);
          add(totals[w][1], factor, to + kTile / 4);
        } else {
          const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
          const __m512i odd = _mm512_or_si512(even, _mm512_set1_epi32(1));
          add(_mm512_add_ps(_mm512_permutex2var_ps(totals[w][0], even, totals[w][1]),
                            _mm512_permutex2var_ps(totals[w][0], odd, totals[w][1])),
              factor, to);
        }
      }
    }
  }

 private:
  static void add(__m512 total, __m512 factor, float* sum) {
    _mm512_storeu_ps(sum, _mm512_fmadd_ps(total, factor, _mm512_loadu_ps(sum)));
  }

  // 8 x 8 words of 64 bits, transposed.
  static void transpose_pairs(__m512i* rows) {
    __m512i two[8], four[8];
    for (int at = 0; at < 8; at += 2) {
      two[at] = _mm512_unpacklo_epi64(rows[at], rows[at + 1]);
      two[at + 1] = _mm512_unpackhi_epi64(rows[at], rows[at + 1]);
    }
    for (int half = 0; half < 2; ++half)
      for (int odd = 0; odd < 2; ++odd) {
        four[4 * half + odd] = _mm512_shuffle_i32x4(two[4 * half + odd], two[4 * half + 2 + odd], 0x88);
        four[4 * half + 2 + odd] = _mm512_shuffle_i32x4(two[4 * half + odd], two[4 * half + 2 + odd], 0xdd);
      }
    // four[4 * half + 2 * second + odd] holds columns 2 * quarter + odd, of the quarters `second` and 2 + `second`, of four rows.
    for (int second = 0; second < 2; ++second)
      for (int odd = 0; odd < 2; ++odd) {
        const __m512i top = four[2 * second + odd], bottom = four[4 + 2 * second + odd];
        rows[2 * second + odd] = _mm512_shuffle_i32x4(top, bottom, 0x88);
        rows[4 + 2 * second + odd] = _mm512_shuffle_i32x4(top, bottom, 0xdd);
      }
  }
};

#include "tiles.inc"

template <class D>
std::unique_ptr<Running> start_with(const Product& product) {
  if (streamed<D>(product, Layout<D>(product.weight))) return std::make_unique<RunningWith<D>>(product);
  return fast_pairs() && product.x.rows > kStreamRows ? start_tiles(product) : nullptr;
}

std::unique_ptr<Running> start(const Product& product) {
  if (product.x.kind != Values::kBF16) return nullptr;
  switch (product.weight.kind) {
    case Codes::kBF16: return start_with<BF16>(product);
    case Codes::kE4M3: return start_with<E4M3>(product);
    case Codes::kE5M2: return start_with<E5M2>(product);
    case Codes::kE2M1: return start_with<E2M1>(product);
    case Codes::kInt8: return fast_pairs() ? start_with<Int8>(product) : nullptr;
    case Codes::kInt4: return fast_pairs() ? start_with<Int4>(product) : nullptr;
    default: return nullptr;
  }
}

void multiply(const Product* products, int64_t count, Pool& pool) { run(products, count, pool, start, avx512_kernels()); }

const Kernels kKernels = {"avx512_bf16", multiply};

}  // namespace avx512_bf16
}  // namespace bombus
BOMBUS_TARGET_END

namespace bombus {
const Kernels* avx512_bf16_kernels() {
  const bool has = avx512_kernels() && BOMBUS_RUNS("avx512vbmi") && BOMBUS_RUNS("avx512bf16");
  return has ? &avx512_bf16::kKernels : nullptr;
}
}  // namespace bombus
#else
namespace bombus {
const Kernels* avx512_bf16_kernels() { return nullptr; }
}  // namespace bombus
#endif
