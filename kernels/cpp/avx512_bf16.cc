// Kernels for AVX-512 VBMI and BF16: few rows of bfloat16, whose products with decoded codes are exact. All else is left
// to AVX-512; integers too, which it decodes faster than they are looked up here.
#include <cstdint>
#include <cstring>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#include "attention.h"
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
  static V same(const uint16_t* from) { return _mm512_set1_epi32(read<int32_t>(from, 0)); }
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

// Vectors in place of tiles. In a sum each lane is a row of x, and pairs of the weight are broadcast to all lanes; or where no
// more than 16 rows are left, two pairs to the lanes of eight rows, as to broadcast takes longer than to multiply once.
class Unit {
 public:
  static constexpr int64_t kOutputs = 16, kSteps = 16;
  static constexpr bool kMeanwhile = true;
  // All inputs of a row behind each other, so that all turns over them are one loop.
  static constexpr int64_t kRowBytes = kSteps * 64, kStepBytes = 64;

  static int64_t columns(int64_t rows) { return rows <= kSide / 2 ? kSide / 2 : kSide; }
  explicit Unit(int64_t columns) : columns_(columns) {}

  // 16 rows of 16 pairs as a tile of x.
  static void arrange(__m512i* rows, bool alone, int64_t columns, uint8_t* out) {
    if (alone) {
      const int64_t eights = columns * 2 / kSide;
      for (int64_t eight = 0; eight < eights; ++eight) {
        transpose_pairs(rows + eight * kSide / 2);
        for (int64_t two = 0; two < kSide / 2; ++two)
          _mm512_storeu_si512(out + (two * eights + eight) * 64, rows[eight * kSide / 2 + two]);
      }
    } else {
      transpose(rows);
      for (int64_t pair = 0; pair < kSide; ++pair) _mm512_storeu_si512(out + pair * 64, rows[pair]);
    }
  }

  // Sums of rows that are alone, whose lanes are those of the first and the second pairs, as a tile of sums.
  void join(float* sums) const {
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odd = _mm512_or_si512(even, _mm512_set1_epi32(1));
    for (int64_t w = 0, vectors = columns_ * 2 / kSide; w < kSide; ++w) {
      const __m512 first = _mm512_loadu_ps(sums + w * vectors * kSide);
      const __m512 last = _mm512_loadu_ps(sums + ((w + 1) * vectors - 1) * kSide);
      _mm512_storeu_ps(sums + w * kSide,
                       _mm512_add_ps(_mm512_permutex2var_ps(first, even, last), _mm512_permutex2var_ps(first, odd, last)));
    }
  }

  template <int M, int N, class Work>
  void multiply(const uint8_t* weights, int64_t, const uint8_t* x, int64_t next_x, int64_t depth, const float* const* scale,
                int64_t column, float* sums, int64_t, Work& work) const {
    static_assert(M == 1);
    if constexpr (N == 2) rows<8, 2, false>(weights, x, x + next_x, depth, scale, column, sums, work);
    else if (columns_ == kSide) rows<8, 2, true>(weights, x, x + 64, depth, scale, column, sums, work);
    else rows<16, 1, true>(weights, x, x, depth, scale, column, sums, work);
  }

 private:
  // W rows of the weight at a time and V vectors of x: 16 sums, which is as many as wait for each other. By itself, as all its
  // registers are needed here.
  template <int W, int V, bool kPairs, class Work>
  __attribute__((noinline)) static void rows(const uint8_t* weights, const uint8_t* x, const uint8_t* other, int64_t depth,
                                             const float* const* scale, int64_t column, float* sums, Work& work) {
    constexpr int64_t kTurns = kPairs ? 8 : 16, kSize = kPairs ? 64 * V : 64;  // for 32 inputs; bytes of x in a turn
    constexpr int64_t kEvery = kPairs ? V : 4;                                 // turns for a block of the weight
    constexpr int64_t kNextRow = kPairs ? V * kSide : kSide, kNextVector = kPairs ? kSide : kTile / 4;  // of sums
    typename Work::Place place = work.place;
    typename Work::Decoder decoder;
    decoder.keep();
    for (int64_t row = 0; row < kSide; row += W) {
      __m512 totals[W][V];
#pragma GCC unroll 16
      for (int w = 0; w < W; ++w)
        for (int v = 0; v < V; ++v) totals[w][v] = _mm512_setzero_ps();
      const uint8_t* left = weights + row * kRowBytes;
      for (int64_t turn = 0; turn < depth * kTurns; turn += kEvery) {
        work.step(decoder, place);
#pragma GCC unroll 4
        for (int64_t at = turn; at < turn + kEvery; ++at) {
          const __m512i values[2] = {_mm512_loadu_si512(x + at * kSize), _mm512_loadu_si512(other + at * kSize)};
#pragma GCC unroll 16
          for (int w = 0; w < W; ++w) {
            const __m512i both = kPairs ? _mm512_set1_epi64(read<int64_t>(left + w * kRowBytes, at))
                                        : _mm512_set1_epi32(read<int32_t>(left + w * kRowBytes, at));
#pragma GCC unroll 2
            for (int v = 0; v < V; ++v) totals[w][v] = _mm512_dpbf16_ps(totals[w][v], (__m512bh)both, (__m512bh)values[v]);
          }
        }
      }
      float* to = sums + row * kNextRow;
      const float* const* of = scale + row;
      const bool same = of[0] == of[W - 1];
      const __m512 first = _mm512_set1_ps(of[0][column]);
#pragma GCC unroll 16
      for (int w = 0; w < W; ++w) {
        const __m512 factor = same ? first : _mm512_set1_ps(of[w][column]);
        for (int v = 0; v < V; ++v) add(totals[w][v], factor, to + w * kNextRow + v * kNextVector);
      }
    }
    work.place = place;
  }

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

  int64_t columns_;
};

#include "tiles.inc"

template <class D>
std::unique_ptr<Running> start_with(const Product& product) {
  if (fast_pairs() && product.x.rows >= D::kTileRows)
    if (std::unique_ptr<Running> tiles = start_tiles(product)) return tiles;
  return streamed<D>(product, Layout<D>(product.weight)) ? std::make_unique<RunningWith<D>>(product) : nullptr;
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

#include "attention_scores.inc"

// Rows of bfloat16 as (pairs, kSlots), with zeros behind what is left of the last 32 numbers.
void turn_pairs(const uint8_t* const* rows, int64_t size, uint16_t* out) {
  for (int64_t first = 0; first < size; first += kDepth, out += kDepth * kSlots) {
    const int64_t left = size - first;
    const Some some{left < kDepth ? ~(~uint64_t{0} << 2 * left) : ~uint64_t{0}};
    for (int64_t slot = 0; slot < kSlots; slot += kSide) {
      __m512i block[kSide];
      for (int64_t at = 0; at < kSide; ++at) block[at] = some.load(rows[slot + at] + 2 * first);
      transpose(block);
      for (int64_t pair = 0; pair < kSide; ++pair) _mm512_storeu_si512(out + 2 * (pair * kSlots + slot), block[pair]);
    }
  }
}

const PairedScores kPairs = {turn_pairs, score_many};
const PairedScores* pairs() { return fast_pairs() ? &kPairs : nullptr; }

const Kernels kKernels = {"avx512_bf16", multiply, pairs};

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
