// Kernels in plain C++, for every processor: four floats at a time in the compiler's own vectors, which are SSE2 on
// x86 and NEON on ARM, and codes looked up in tables.
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

namespace bombus {
namespace plain {

struct Floats {
  static constexpr int kLanes = 4, kSums = 12, kTileVectors = 2;
  typedef float F __attribute__((vector_size(16)));
  struct Index {};
  static F zero() { return F{}; }
  static F set(float value) { return F{value, value, value, value}; }
  static F load(const float* from) {
    F value;
    std::memcpy(&value, from, sizeof value);
    return value;
  }
  static void store(float* to, F value) { std::memcpy(to, &value, sizeof value); }
  static F mul(F a, F b) { return a * b; }
  static F add(F a, F b) { return a + b; }
  static F sub(F a, F b) { return a - b; }
  static F max(F a, F b) { return a > b ? a : b; }  // b where one is no number
  static F fma(F a, F b, F c) { return a * b + c; }
  static F fnma(F a, F b, F c) { return c - a * b; }
  static float largest(F value) {
    const float even = value[0] > value[2] ? value[0] : value[2], odd = value[1] > value[3] ? value[1] : value[3];
    return even > odd ? even : odd;
  }
  static float sum(F value) { return (value[0] + value[2]) + (value[1] + value[3]); }
  // Never asked for: a block here is no longer than the shortest tile of the formats.
  static Index groups(int64_t) { return {}; }
  static F spread(const float* from, Index) { return set(*from); }
  static F scales(const Matrix& weight, int64_t first) {
    return F{read_scale(weight, first), read_scale(weight, first + 1), read_scale(weight, first + 2),
             read_scale(weight, first + 3)};
  }
  struct Subnormals {
    ~Subnormals() {}  // not trivial, or it would count as unused
  };
};

#include "single.inc"

// The values of all codes of eight bits.
struct Table {
  float values[256];
  template <class Decode>
  explicit Table(Decode decode) {
    for (int code = 0; code < 256; ++code) values[code] = decode(static_cast<uint8_t>(code));
  }
};
extern const Table kE4M3, kE5M2;

struct Shown {
  using Bad = int;
  static Bad good() { return 0; }
  static bool is_bad(Bad) { return false; }
  static constexpr float kFactor = 1.0f, kTaken = 8.0f;
  static constexpr bool kPacked = false, kStrips = true, kByVector = false;
  static constexpr int kRun = 0;
  static float row_factor(int) { return 1.0f; }
  static int position(int vector, int lane) { return 4 * vector + lane; }
};

struct F32 : Shown {
  static constexpr int kCodes = 4, kBytes = 16, kVectors = 1;
  static void decode(const uint8_t* bytes, Isa::F* out, Bad&) { std::memcpy(out, bytes, 16); }
};

struct BF16 : Shown {
  static constexpr int kCodes = 8, kBytes = 16, kVectors = 2;
  static int position(int vector, int lane) { return 2 * lane + vector; }
  static void decode(const uint8_t* bytes, Isa::F* out, Bad&) {
    typedef uint32_t Words __attribute__((vector_size(16)));
    Words two;
    std::memcpy(&two, bytes, 16);
    out[0] = reinterpret_cast<Isa::F>(two << 16);
    out[1] = reinterpret_cast<Isa::F>(two & 0xffff0000u);
  }
};

template <int kVectors_, class Value>
inline void each(Isa::F* out, Value value) {
  for (int vector = 0; vector < kVectors_; ++vector)
    out[vector] = Isa::F{value(4 * vector), value(4 * vector + 1), value(4 * vector + 2), value(4 * vector + 3)};
}

struct F16 : Shown {
  static constexpr int kCodes = 16, kBytes = 32, kVectors = 4;
  static void decode(const uint8_t* bytes, Isa::F* out, Bad&) {
    each<kVectors>(out, [&](int at) { return half(static_cast<uint16_t>(bytes[2 * at] | bytes[2 * at + 1] << 8)); });
  }
};

struct Eight : Shown {
  static constexpr int kCodes = 16, kBytes = 16, kVectors = 4;
};

struct E4M3 : Eight {
  static void decode(const uint8_t* bytes, Isa::F* out, Bad&) {
    each<kVectors>(out, [&](int at) { return kE4M3.values[bytes[at]]; });
  }
};

struct E5M2 : Eight {
  static void decode(const uint8_t* bytes, Isa::F* out, Bad&) {
    each<kVectors>(out, [&](int at) { return kE5M2.values[bytes[at]]; });
  }
};

struct Int8 : Eight {
  static void decode(const uint8_t* bytes, Isa::F* out, Bad&) {
    each<kVectors>(out, [&](int at) { return static_cast<float>(static_cast<int8_t>(bytes[at])); });
  }
};

struct Int4 : Shown {
  static constexpr int kCodes = 16, kBytes = 8, kVectors = 4;
  static constexpr bool kPacked = true;
  static void decode(const uint8_t* bytes, Isa::F* out, Bad&) {
    each<kVectors>(out, [&](int at) { return static_cast<float>(bytes[at / 2] >> 4 * (at % 2) & 15) - 8.0f; });
  }
};

struct E2M1 : Shown {
  static constexpr int kCodes = 16, kBytes = 8, kVectors = 4;
  static constexpr bool kPacked = true;
  static void decode(const uint8_t* bytes, Isa::F* out, Bad&) {
    static constexpr float kValues[16] = {0.0f,  0.5f,  1.0f,  1.5f,  2.0f,  3.0f,  4.0f,  6.0f,
                                          -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f};
    each<kVectors>(out, [&](int at) { return kValues[bytes[at / 2] >> 4 * (at % 2) & 15]; });
  }
};

#include "product.inc"
#include "floats.inc"
#include "attention.inc"
#include "rows.inc"

const Table kE4M3(e4m3);
const Table kE5M2([](uint8_t code) { return half(static_cast<uint16_t>(code << 8)); });
const Kernels kKernels = {"plain", multiply, nullptr, attend, unite, norm, rotate, finish, argmax, exponentials};

}  // namespace plain

const Kernels* plain_kernels() { return &plain::kKernels; }

}  // namespace bombus
