// The instructions of kernels/cpp/avx512*.cc and amx.cc in portable C++, for processors that lack them: SIMDe's, and
// here what it does not have, each as the manual defines it ("Intel 64 and IA-32 Architectures Software Developer's
// Manual", volume 2).
#pragma once

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>
#include <simde/x86/fma.h>

// Of vectors as arguments of templates: what they lose there is their alignment, which nobody asks for.
#pragma GCC diagnostic ignored "-Wignored-attributes"

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace emulated {

// A register, or any other value, as lanes of T, and the way back.
template <class T, class V>
struct Lanes {
  T at[sizeof(V) / sizeof(T)];
  explicit Lanes(V value) { std::memcpy(at, &value, sizeof value); }
};

template <class V, class T>
V together(const T& lanes) {
  static_assert(sizeof(V) == sizeof(T), "as many bits");
  V value;
  std::memcpy(&value, &lanes, sizeof value);
  return value;
}

inline float flushed(float value) { return std::fpclassify(value) == FP_SUBNORMAL ? std::copysign(0.0f, value) : value; }

// Subnormal numbers count as zero, before and after, whatever the processor was told.
inline float of_bf16(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return flushed(value);
}
inline float fma_flushed(float a, float b, float c) { return flushed(std::fma(a, b, c)); }

inline simde__m512 cvtph_ps(simde__m256i halves) {
  const Lanes<uint16_t, simde__m256i> in(halves);
  float out[16];
  for (int lane = 0; lane < 16; ++lane) {
    const int exponent = in.at[lane] >> 10 & 31, fraction = in.at[lane] & 1023;
    float value = std::ldexp(static_cast<float>(exponent ? fraction + 1024 : fraction), (exponent ? exponent : 1) - 25);
    if (exponent == 31) value = fraction ? NAN : INFINITY;
    out[lane] = in.at[lane] >> 15 ? -value : value;
  }
  return together<simde__m512>(out);
}

inline simde__m512i cvtepu8_epi32(simde__m128i bytes) {
  const Lanes<uint8_t, simde__m128i> in(bytes);
  uint32_t out[16];
  for (int lane = 0; lane < 16; ++lane) out[lane] = in.at[lane];
  return together<simde__m512i>(out);
}

// Only what the mask has is read.
template <class V>
V maskz_loadu_epi8(uint64_t mask, const void* from) {
  uint8_t out[sizeof(V)] = {};
  for (size_t byte = 0; byte < sizeof out; ++byte)
    if (mask >> byte & 1) out[byte] = static_cast<const uint8_t*>(from)[byte];
  return together<V>(out);
}

inline simde__m512i cvtepu16_epi32(simde__m256i words) {
  const Lanes<uint16_t, simde__m256i> in(words);
  uint32_t out[16];
  for (int lane = 0; lane < 16; ++lane) out[lane] = in.at[lane];
  return together<simde__m512i>(out);
}

inline simde__m128i cvtepi64_epi16(simde__m512i words) {
  const Lanes<uint64_t, simde__m512i> in(words);
  uint16_t out[8];
  for (int lane = 0; lane < 8; ++lane) out[lane] = static_cast<uint16_t>(in.at[lane]);
  return together<simde__m128i>(out);
}

inline simde__m256i cvtepi32_epi16(simde__m512i words) {
  const Lanes<uint32_t, simde__m512i> in(words);
  uint16_t out[16];
  for (int lane = 0; lane < 16; ++lane) out[lane] = static_cast<uint16_t>(in.at[lane]);
  return together<simde__m256i>(out);
}

inline simde__m512 cvtepi32_ps(simde__m512i words) {
  const Lanes<int32_t, simde__m512i> in(words);
  float out[16];
  for (int lane = 0; lane < 16; ++lane) out[lane] = static_cast<float>(in.at[lane]);
  return together<simde__m512>(out);
}

inline simde__m512i srai_epi32(simde__m512i words, unsigned count) {
  Lanes<int32_t, simde__m512i> lanes(words);
  for (int32_t& lane : lanes.at) lane >>= count < 32 ? count : 31;
  return together<simde__m512i>(lanes.at);
}

// SIMDe adds signed bytes, whose overflow is undefined.
inline simde__m512i add_epi8(simde__m512i a, simde__m512i b) {
  Lanes<uint8_t, simde__m512i> sum(a);
  const Lanes<uint8_t, simde__m512i> other(b);
  for (int lane = 0; lane < 64; ++lane) sum.at[lane] = static_cast<uint8_t>(sum.at[lane] + other.at[lane]);
  return together<simde__m512i>(sum.at);
}

// VDPBF16PS: two products a lane, the odd one first, each added with one rounding.
inline simde__m512 dpbf16_ps(simde__m512 sum, simde__m512i a, simde__m512i b) {
  const Lanes<uint16_t, simde__m512i> left(a), right(b);
  Lanes<float, simde__m512> out(sum);
  for (int lane = 0; lane < 16; ++lane) {
    const float odd = fma_flushed(of_bf16(left.at[2 * lane + 1]), of_bf16(right.at[2 * lane + 1]), flushed(out.at[lane]));
    out.at[lane] = fma_flushed(of_bf16(left.at[2 * lane]), of_bf16(right.at[2 * lane]), odd);
  }
  return together<simde__m512>(out.at);
}

// AMX: eight tiles of 16 rows of 64 bytes, of which a configuration says how many are in use.
struct Config {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};

struct Tile {
  uint8_t bytes[16][64];
};

inline thread_local Tile tiles[8];
inline thread_local Config config;

// What a processor answers with an exception.
inline void must(bool right, const char* what) {
  if (right) return;
  std::fprintf(stderr, "AMX: %s\n", what);
  std::abort();
}

inline void tile_loadconfig(const void* from) {
  static_assert(sizeof(Config) == 64, "the size of a configuration");
  std::memcpy(&config, from, sizeof config);
  must(config.palette == 1 && config.start_row == 0, "palette or first row");
  for (const uint8_t byte : config.reserved) must(byte == 0, "reserved bytes");
  for (int tile = 0; tile < 16; ++tile) {
    must(tile < 8 || (config.rows[tile] == 0 && config.row_bytes[tile] == 0), "tiles there are none of");
    must(config.rows[tile] <= 16 && config.row_bytes[tile] <= 64, "a tile's size");
    must((config.rows[tile] == 0) == (config.row_bytes[tile] == 0), "rows without bytes");
  }
  std::memset(tiles, 0, sizeof tiles);
}

inline void tile_release() {
  std::memset(&config, 0, sizeof config);
  std::memset(tiles, 0, sizeof tiles);
}

inline void tile_zero(int tile) {
  must(config.rows[tile] > 0, "a tile that is not configured");
  std::memset(&tiles[tile], 0, sizeof(Tile));
}

inline void tile_loadd(int tile, const void* from, int64_t stride) {
  tile_zero(tile);
  for (int row = 0; row < config.rows[tile]; ++row)
    std::memcpy(tiles[tile].bytes[row], static_cast<const uint8_t*>(from) + row * stride, config.row_bytes[tile]);
}

inline void tile_stored(int tile, void* to, int64_t stride) {
  must(config.rows[tile] > 0, "a tile that is not configured");
  for (int row = 0; row < config.rows[tile]; ++row)
    std::memcpy(static_cast<uint8_t*>(to) + row * stride, tiles[tile].bytes[row], config.row_bytes[tile]);
}

// TDPBF16PS: even and odd products in sums of their own, added in the end.
inline void tile_dpbf16ps(int c, int a, int b) {
  must(config.rows[a] > 0 && config.rows[b] > 0 && config.rows[c] > 0, "a tile that is not configured");
  must(config.rows[a] == config.rows[c] && config.row_bytes[b] == config.row_bytes[c] &&
           config.row_bytes[a] == 4 * config.rows[b],
       "tiles that do not fit");
  must(config.row_bytes[a] % 4 == 0 && config.row_bytes[b] % 4 == 0, "half a pair");
  must(a != b && a != c && b != c, "one tile twice");
  const auto pair = [](const Tile& tile, int row, int at) {
    uint16_t bits;
    std::memcpy(&bits, tile.bytes[row] + 2 * at, sizeof bits);
    return of_bf16(bits);
  };
  for (int m = 0; m < config.rows[c]; ++m)
    for (int n = 0; n < config.row_bytes[c] / 4; ++n) {
      float even = 0.0f, odd = 0.0f, sum;
      for (int k = 0; k < config.rows[b]; ++k) {
        even = fma_flushed(pair(tiles[a], m, 2 * k), pair(tiles[b], k, 2 * n), even);
        odd = fma_flushed(pair(tiles[a], m, 2 * k + 1), pair(tiles[b], k, 2 * n + 1), odd);
      }
      std::memcpy(&sum, tiles[c].bytes[m] + 4 * n, sizeof sum);
      sum = flushed(sum + flushed(even + odd));
      std::memcpy(tiles[c].bytes[m] + 4 * n, &sum, sizeof sum);
    }
}

}  // namespace emulated

#define _mm512_cvtph_ps emulated::cvtph_ps
#define _mm512_cvtepu8_epi32 emulated::cvtepu8_epi32
#define _mm512_cvtepu16_epi32 emulated::cvtepu16_epi32
#define _mm512_cvtepi32_epi16 emulated::cvtepi32_epi16
#define _mm512_cvtepi64_epi16 emulated::cvtepi64_epi16
#define _mm512_maskz_loadu_epi8 emulated::maskz_loadu_epi8<simde__m512i>
#define _mm_maskz_loadu_epi8 emulated::maskz_loadu_epi8<simde__m128i>
#undef _mm512_add_epi8
#define _mm512_add_epi8 emulated::add_epi8
#define _mm512_cvtepi32_ps emulated::cvtepi32_ps
#define _mm512_srai_epi32 emulated::srai_epi32
#undef _mm512_dpbf16_ps
#define _mm512_dpbf16_ps emulated::dpbf16_ps
#undef __m512bh
#define __m512bh simde__m512i
#define _tile_loadconfig emulated::tile_loadconfig
#define _tile_release emulated::tile_release
#define _tile_zero emulated::tile_zero
#define _tile_loadd emulated::tile_loadd
#define _tile_stored emulated::tile_stored
#define _tile_dpbf16ps emulated::tile_dpbf16ps
