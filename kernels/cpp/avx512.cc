// Kernels for AVX-512 (F, BW, DQ and VL): sixteen floats at a time.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#include "attention.h"
#include "kernels.h"
#include "lines.h"
#include "numbers.h"
#include "rows.h"
#include "running.h"
#include "stored.h"
#include "target.h"

#if defined(BOMBUS_X86)
#include BOMBUS_INTRINSICS

BOMBUS_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
namespace bombus {
namespace avx512 {

#include "avx512.inc"
#include "single.inc"

// Decoders, as avx2.cc describes them. All take 64 bytes, and none makes subnormal numbers.
struct Decoder {
  static constexpr int kBytes = 64;
  static constexpr float kFactor = 1.0f, kTaken = 8.0f;
  static constexpr bool kPacked = false, kStrips = true, kByVector = false;
  static float row_factor(int) { return 1.0f; }
};

struct Shown : Decoder {
  using Bad = int;
  static Bad good() { return 0; }
  static bool is_bad(Bad) { return false; }
};

struct F32 : Shown {
  static constexpr int kCodes = 16, kVectors = 1, kRun = 0;
  static int position(int, int lane) { return lane; }
  static void decode(const uint8_t* bytes, __m512* out, Bad&) { out[0] = _mm512_castsi512_ps(_mm512_loadu_si512(bytes)); }
};

struct BF16 : Shown {
  static constexpr int kCodes = 32, kVectors = 2, kRun = 0;
  static int position(int vector, int lane) { return 2 * lane + vector; }
  static void decode(const uint8_t* bytes, __m512* out, Bad&) {
    const __m512i two = _mm512_loadu_si512(bytes);
    out[0] = _mm512_castsi512_ps(_mm512_slli_epi32(two, 16));
    out[1] = _mm512_castsi512_ps(_mm512_and_si512(two, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
  }
};

// 32 float16.
inline void halves(__m512i words, __m512* out) {
  out[0] = _mm512_cvtph_ps(_mm512_castsi512_si256(words));
  out[1] = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(words, 1));
}

struct F16 : Shown {
  static constexpr int kCodes = 32, kVectors = 2, kRun = 0;
  static int position(int vector, int lane) { return 16 * vector + lane; }
  static void decode(const uint8_t* bytes, __m512* out, Bad&) { halves(_mm512_loadu_si512(bytes), out); }
};

// Eight bits that become the upper half of a float16. Even and odd bytes are told apart in words, and the halves of a
// register in conversions; so that a lane has to do with 16 inputs in a row only, eight bytes of each 16 go to either
// half first.
struct Eight : Decoder {
  static constexpr int kCodes = 64, kVectors = 4, kRun = 16;
  static int position(int vector, int lane) { return 16 * (lane / 4) + 8 * (vector % 2) + 2 * (lane % 4) + vector / 2; }
  static __m512i load(const uint8_t* bytes) {
    return _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), _mm512_loadu_si512(bytes));
  }
};

struct E5M2 : Eight {
  using Bad = int;
  static Bad good() { return 0; }
  static bool is_bad(Bad) { return false; }
  static void decode(const uint8_t* bytes, __m512* out, Bad&) {
    const __m512i codes = load(bytes);
    halves(_mm512_slli_epi16(codes, 8), out);
    halves(_mm512_and_si512(codes, _mm512_set1_epi16(static_cast<short>(0xff00))), out + 2);
  }
};

// One bit down from the upper half of a word, and without the copy of the sign, a code is a float16 that is 256 times
// too small, subnormals included. The conversion takes these whether or not the processor flushes them elsewhere.
struct E4M3 : Eight {
  static constexpr float kFactor = 256.0f;
  using Bad = __m512i;
  static Bad good() { return _mm512_setzero_si512(); }
  static void decode(const uint8_t* bytes, __m512* out, Bad& bad) {
    const __m512i codes = load(bytes);
    bad = _mm512_max_epu8(bad, _mm512_add_epi8(codes, codes));  // the sign is out
    const __m512i even = _mm512_srai_epi16(_mm512_slli_epi16(codes, 8), 1);
    // The even byte is still below an odd one: seven of its bits reach into the fraction.
    const __m512i odd = _mm512_srai_epi16(codes, 1);
    halves(_mm512_and_si512(even, _mm512_set1_epi16(static_cast<short>(0xbfff))), out);
    halves(_mm512_and_si512(odd, _mm512_set1_epi16(static_cast<short>(0xbf80))), out + 2);
  }
  static bool is_bad(Bad bad) {
    return _mm512_cmpeq_epi8_mask(bad, _mm512_set1_epi8(static_cast<char>(0xfe))) != 0;
  }
};

struct Int8 : Shown {
  static constexpr int kCodes = 64, kVectors = 4, kRun = 4;
  static int position(int vector, int lane) { return 4 * lane + vector; }
  static void decode(const uint8_t* bytes, __m512* out, Bad&) {
    const __m512i four = _mm512_loadu_si512(bytes);
    out[0] = _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(four, 24), 24));
    out[1] = _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(four, 16), 24));
    out[2] = _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(four, 8), 24));
    out[3] = _mm512_cvtepi32_ps(_mm512_srai_epi32(four, 24));
  }
};

// Four bits: their values are looked up. The lookup takes the four lowest bits.
struct Four : Shown {
  static constexpr int kCodes = 128, kVectors = 8, kRun = 8;
  static constexpr bool kPacked = true;
  static int position(int vector, int lane) { return 8 * lane + vector; }
  static void look_up(const uint8_t* bytes, __m512 values, __m512* out) {
    const __m512i eight = _mm512_loadu_si512(bytes);
    out[0] = _mm512_permutexvar_ps(eight, values);
    out[1] = _mm512_permutexvar_ps(_mm512_srli_epi32(eight, 4), values);
    out[2] = _mm512_permutexvar_ps(_mm512_srli_epi32(eight, 8), values);
    out[3] = _mm512_permutexvar_ps(_mm512_srli_epi32(eight, 12), values);
    out[4] = _mm512_permutexvar_ps(_mm512_srli_epi32(eight, 16), values);
    out[5] = _mm512_permutexvar_ps(_mm512_srli_epi32(eight, 20), values);
    out[6] = _mm512_permutexvar_ps(_mm512_srli_epi32(eight, 24), values);
    out[7] = _mm512_permutexvar_ps(_mm512_srli_epi32(eight, 28), values);
  }
};

struct Int4 : Four {
  static void decode(const uint8_t* bytes, __m512* out, Bad&) {
    look_up(bytes, _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7), out);
  }
};

struct E2M1 : Four {
  static void decode(const uint8_t* bytes, __m512* out, Bad&) {
    look_up(bytes,
            _mm512_setr_ps(0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f, -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f,
                           -4.0f, -6.0f),
            out);
  }
};

#include "product.inc"
#include "floats.inc"
#include "attention.inc"
#include "rows.inc"

const Kernels kKernels = {"avx512", multiply, nullptr, attend, unite, norm, rotate, finish, argmax, exponentials};

}  // namespace avx512
}  // namespace bombus
BOMBUS_TARGET_END

namespace bombus {
const Kernels* avx512_kernels() {
  const bool has = BOMBUS_RUNS("avx512f") && BOMBUS_RUNS("avx512bw") && BOMBUS_RUNS("avx512dq") &&
                   BOMBUS_RUNS("avx512vl") && BOMBUS_RUNS("avx2") && BOMBUS_RUNS("fma");
  return has ? &avx512::kKernels : nullptr;
}
}  // namespace bombus
#else
namespace bombus {
const Kernels* avx512_kernels() { return nullptr; }
}  // namespace bombus
#endif
