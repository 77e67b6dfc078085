// Kernels for AVX2, FMA and F16C: eight floats at a time.
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
#include <immintrin.h>

BOMBUS_TARGET_BEGIN("avx2,fma,f16c")
namespace bombus {
namespace avx2 {

#include "avx2.inc"
#include "single.inc"

inline __m256i bytes_at(const uint8_t* bytes) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes)); }

// Decoders: kCodes codes in kBytes bytes become kVectors vectors, of which lane `lane` of vector `vector` holds input
// position(vector, lane) of the block. kRun: how many inputs in a row a lane holds; 0 if that has no meaning. kFactor:
// what sums still have to be multiplied with, after the inputs of a vector were with row_factor. kTaken: what is off the
// codes of int4 already. kStrips: whether it decodes strips too.
// kByVector: whether one vector is decoded after the other, from `raw`. Bad: where NaN is noted that values do not show.
struct Decoder {
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
  static constexpr int kCodes = 8, kBytes = 32, kVectors = 1, kRun = 0;
  static int position(int, int lane) { return lane; }
  static void decode(const uint8_t* bytes, __m256* out, Bad&) { out[0] = _mm256_castsi256_ps(bytes_at(bytes)); }
};

struct BF16 : Shown {
  static constexpr int kCodes = 16, kBytes = 32, kVectors = 2, kRun = 0;
  static int position(int vector, int lane) { return 2 * lane + vector; }
  static void decode(const uint8_t* bytes, __m256* out, Bad&) {
    const __m256i two = bytes_at(bytes);
    out[0] = _mm256_castsi256_ps(_mm256_slli_epi32(two, 16));
    out[1] = _mm256_castsi256_ps(_mm256_and_si256(two, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
  }
};

struct F16 : Shown {
  static constexpr int kCodes = 16, kBytes = 32, kVectors = 2, kRun = 0;
  static int position(int vector, int lane) { return 8 * vector + lane; }
  static void decode(const uint8_t* bytes, __m256* out, Bad&) {
    const __m256i two = bytes_at(bytes);
    out[0] = _mm256_cvtph_ps(_mm256_castsi256_si128(two));
    out[1] = _mm256_cvtph_ps(_mm256_extracti128_si256(two, 1));
  }
};

// Even and odd bytes as the upper halves of 16-bit words.
inline void halves(__m256i even, __m256i odd, __m256* out) {
  out[0] = _mm256_cvtph_ps(_mm256_castsi256_si128(even));
  out[1] = _mm256_cvtph_ps(_mm256_extracti128_si256(even, 1));
  out[2] = _mm256_cvtph_ps(_mm256_castsi256_si128(odd));
  out[3] = _mm256_cvtph_ps(_mm256_extracti128_si256(odd, 1));
}

struct E5M2 : Shown {
  static constexpr int kCodes = 32, kBytes = 32, kVectors = 4, kRun = 0;
  static int position(int vector, int lane) { return vector / 2 + 2 * lane + 16 * (vector % 2); }
  static void decode(const uint8_t* bytes, __m256* out, Bad&) {
    const __m256i codes = bytes_at(bytes);
    halves(_mm256_slli_epi16(codes, 8), _mm256_and_si256(codes, _mm256_set1_epi16(static_cast<short>(0xff00))), out);
  }
};

// NaN of e4m3: all bits but the sign. It is looked for in whole rows, whose every product it is.
struct Noted : Decoder {
  using Bad = __m256i;
  static Bad good() { return _mm256_setzero_si256(); }
  static Bad note(Bad bad, __m256i codes) { return _mm256_max_epu8(bad, _mm256_add_epi8(codes, codes)); }
  static bool is_bad(Bad bad) {
    return _mm256_movemask_epi8(_mm256_cmpeq_epi8(bad, _mm256_set1_epi8(static_cast<char>(0xfe)))) != 0;
  }
};

// One bit down from the upper half of a word, and without the copy of the sign, a code is a float16 that is 256 times
// too small, subnormals included. F16C converts these whether or not the processor flushes them elsewhere.
struct E4M3 : Noted {
  static constexpr int kCodes = 32, kBytes = 32, kVectors = 4, kRun = 0;
  static constexpr float kFactor = 256.0f;
  static int position(int vector, int lane) { return E5M2::position(vector, lane); }
  static void decode(const uint8_t* bytes, __m256* out, Bad& bad) {
    const __m256i codes = bytes_at(bytes);
    bad = note(bad, codes);
    const __m256i even = _mm256_srai_epi16(_mm256_slli_epi16(codes, 8), 1), odd = _mm256_srai_epi16(codes, 1);
    // The even byte is still below an odd one: seven of its bits reach into the fraction.
    halves(_mm256_and_si256(even, _mm256_set1_epi16(static_cast<short>(0xbfff))),
           _mm256_and_si256(odd, _mm256_set1_epi16(static_cast<short>(0xbf80))), out);
  }
};

struct Int8 : Shown {
  static constexpr int kCodes = 32, kBytes = 32, kVectors = 4, kRun = 4;
  static int position(int vector, int lane) { return 4 * lane + vector; }
  static void decode(const uint8_t* bytes, __m256* out, Bad&) {
    const __m256i four = bytes_at(bytes);
    out[0] = _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(four, 24), 24));
    out[1] = _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(four, 16), 24));
    out[2] = _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(four, 8), 24));
    out[3] = _mm256_cvtepi32_ps(_mm256_srai_epi32(four, 24));
  }
};

// Codes 0 to 15 less 8: with its highest bit turned over a nibble is that number in two's complement.
struct Int4 : Shown {
  static constexpr int kCodes = 64, kBytes = 32, kVectors = 8, kRun = 8;
  static constexpr bool kPacked = true;
  static int position(int vector, int lane) { return 8 * lane + vector; }
  static void decode(const uint8_t* bytes, __m256* out, Bad&) {
    const __m256i eight = _mm256_xor_si256(bytes_at(bytes), _mm256_set1_epi32(static_cast<int>(0x88888888u)));
    out[0] = _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(eight, 28), 28));
    out[1] = _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(eight, 24), 28));
    out[2] = _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(eight, 20), 28));
    out[3] = _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(eight, 16), 28));
    out[4] = _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(eight, 12), 28));
    out[5] = _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(eight, 8), 28));
    out[6] = _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(eight, 4), 28));
    out[7] = _mm256_cvtepi32_ps(_mm256_srai_epi32(eight, 28));
  }
};

struct E2M1 : Shown {
  static constexpr int kCodes = 64, kBytes = 32, kVectors = 8, kRun = 8;
  static constexpr bool kPacked = true;
  static int position(int vector, int lane) { return 8 * lane + vector; }
  template <int kBit>
  static __m256 one(__m256i eight) {
    const __m256 magnitudes = _mm256_setr_ps(0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f);
    // The lookup takes the three lowest bits.
    const __m256 value = _mm256_permutevar8x32_ps(magnitudes, _mm256_srli_epi32(eight, kBit));
    const __m256i sign = _mm256_slli_epi32(_mm256_srli_epi32(eight, kBit + 3), 31);
    return _mm256_xor_ps(value, _mm256_castsi256_ps(sign));
  }
  static void decode(const uint8_t* bytes, __m256* out, Bad&) {
    const __m256i eight = bytes_at(bytes);
    out[0] = one<0>(eight);
    out[1] = one<4>(eight);
    out[2] = one<8>(eight);
    out[3] = one<12>(eight);
    out[4] = one<16>(eight);
    out[5] = one<20>(eight);
    out[6] = one<24>(eight);
    out[7] = one<28>(eight);
  }
};

// The decoders below make subnormal numbers of codes, where their bits need not be brought to their place one by one
// nor be converted. For processors that are fast with these; and x is scaled up, so that no product is subnormal.
constexpr float kMostOfShifted = 0x1p30f;  // of x: beyond that products could overflow

struct Shifted {
  static float row_factor(int) { return 0x1p80f; }
  // The upper 16 bits of each lane, of which `mask` is wanted, as a float32.
  template <uint32_t kMask>
  static __m256 upper(__m256i words) {
    return _mm256_castsi256_ps(_mm256_and_si256(words, _mm256_set1_epi32(static_cast<int>(kMask << 16))));
  }
  template <uint32_t kMask>
  static __m256 lower(__m256i words) {
    return upper<kMask>(_mm256_slli_epi32(words, 16));
  }
};

// Four bits down from the top of a float32 a code is 2^120 times too small, subnormals included.
struct E4M3Shifted : Noted {
  static constexpr int kCodes = 32, kBytes = 32, kVectors = 4, kRun = 4;
  static constexpr float kFactor = 0x1p40f;
  static constexpr bool kStrips = false;
  static float row_factor(int vector) { return Shifted::row_factor(vector); }
  static int position(int vector, int lane) { return 4 * lane + (vector == 1 ? 2 : vector == 2 ? 1 : vector); }
  static void decode(const uint8_t* bytes, __m256* out, Bad& bad) {
    const __m256i codes = bytes_at(bytes);
    bad = note(bad, codes);
    const __m256i even = _mm256_srai_epi16(_mm256_slli_epi16(codes, 8), 4), odd = _mm256_srai_epi16(codes, 4);
    out[0] = Shifted::lower<0x87f0>(even);
    out[1] = Shifted::upper<0x87f0>(even);
    out[2] = Shifted::lower<0x87f0>(odd);
    out[3] = Shifted::upper<0x87f0>(odd);
  }
};

// Four bits anywhere below the exponent are a number times a power of two, by which x is divided.
struct Int4Shifted : Shown {
  static constexpr int kCodes = 64, kBytes = 32, kVectors = 8, kRun = 8;
  static constexpr float kFactor = 0x1p69f, kTaken = 0.0f;
  static constexpr bool kPacked = true, kStrips = false, kByVector = true;
  static float row_factor(int vector) { return from_bits(static_cast<uint32_t>(127 + 80 - 4 * (vector % 4)) << 23); }
  static int position(int vector, int lane) { return 8 * lane + vector; }
  using Raw = __m256i;
  static Raw raw(const uint8_t* bytes) { return bytes_at(bytes); }
  template <int kVector>
  static __m256 vector(Raw& eight) {
    if (kVector == 4) eight = _mm256_srli_epi32(eight, 16);
    return _mm256_castsi256_ps(_mm256_and_si256(eight, _mm256_set1_epi32(0xf << kVector % 4 * 4)));
  }
};

// Six bits down from the top a code is 2^126 times too small.
struct E2M1Shifted : Shown {
  static constexpr int kCodes = 64, kBytes = 32, kVectors = 8, kRun = 8;
  static constexpr float kFactor = 0x1p46f;
  static constexpr bool kPacked = true, kStrips = false;
  static float row_factor(int vector) { return Shifted::row_factor(vector); }
  static int position(int vector, int lane) { return 8 * lane + vector / 2 + 4 * (vector % 2); }
  static void decode(const uint8_t* bytes, __m256* out, Bad&) {
    const __m256i eight = bytes_at(bytes);
    const __m256i words[4] = {_mm256_slli_epi16(eight, 12), _mm256_slli_epi16(eight, 8), _mm256_slli_epi16(eight, 4), eight};
    for (int at = 0; at < 4; ++at) {
      const __m256i moved = _mm256_srai_epi16(words[at], 6);
      out[2 * at] = Shifted::lower<0x81c0>(moved);
      out[2 * at + 1] = Shifted::upper<0x81c0>(moved);
    }
  }
};

#define BOMBUS_SHIFTED
#include "product.inc"
#include "floats.inc"
#include "attention.inc"
#include "rows.inc"

const Kernels kKernels = {"avx2", multiply, nullptr, attend, unite, norm, rotate, finish, argmax, exponentials};

}  // namespace avx2

}  // namespace bombus
BOMBUS_TARGET_END

namespace bombus {
const Kernels* avx2_kernels() {
  const bool has = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  return has ? &avx2::kKernels : nullptr;
}
}  // namespace bombus
#else
namespace bombus {
const Kernels* avx2_kernels() { return nullptr; }
}  // namespace bombus
#endif
