// Kernels for AMX: four rows of bfloat16 and more, by tiles (tiles.inc). Fewer rows, and weights whose scales change within
// 32 inputs, are left to AVX-512.
#include <cstdint>
#include <cstring>
#include <memory>
#include <type_traits>
#include <vector>

#include "kernels.h"
#include "lines.h"
#include "running.h"
#include "stored.h"
#include "target.h"

#if defined(BOMBUS_AMX)
#include BOMBUS_INTRINSICS

#if defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

BOMBUS_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512bf16,avx2,fma,amx-tile,amx-bf16")
namespace bombus {
namespace amx {

#include "avx512.inc"
#include "bf16.inc"

using Isa = Floats;
#include "scales.inc"

constexpr int64_t kFewestRows = 4;

// What was written before is in memory, and what is written after is not there yet: compilers do not know what the
// tile instructions read.
inline void fence() { __asm__ volatile("" ::: "memory"); }

// The processor's tiles: 0 to 3 are sums, 4 and 5 rows of the weight, 6 and 7 columns of x.
class Unit {
 public:
  static constexpr int64_t kOutputs = 64, kSteps = 8;  // four tiles of rows: two are multiplied at a time
  static constexpr int64_t kRowBytes = 64, kStepBytes = kTile;
  static constexpr bool kMeanwhile = false;  // multiplying is the smaller part

  // Fewer rows of x than a tile has are multiplied in less time.
  static int64_t columns(int64_t rows) { return rows < kSide ? rows : kSide; }

  explicit Unit(int64_t columns) : columns_(columns) {
    const Shape shape(columns);
    __asm__ volatile("" ::"r"(&shape) : "memory");
    _tile_loadconfig(&shape);
  }
  ~Unit() { _tile_release(); }
  Unit(const Unit&) = delete;

  // 16 rows of 16 pairs as a tile of x.
  static void arrange(__m512i* rows, bool, int64_t columns, uint8_t* out) {
    transpose(rows);
    // Where there are fewer columns than are stored, the next row overwrites those behind them.
    for (int64_t row = 0; row < kSide; ++row) _mm512_storeu_si512(out + row * 4 * columns, rows[row]);
  }

  void join(float*) const {}

  template <int M, int N, class Work>
  void multiply(const uint8_t* weights, int64_t next_weights, const uint8_t* x, int64_t next_x, int64_t depth,
                const float* const* scale, int64_t column, float* sums, int64_t next_sums, Work&) const {
    const int64_t stride = 4 * columns_, tile = stride * kSide;
    alignas(64) float parts[M * N][kSide * kSide];
    if (columns_ < kSide) std::memset(parts, 0, sizeof parts);
    fence();
    _tile_zero(0);
    if constexpr (N == 2) _tile_zero(1);
    if constexpr (M == 2) _tile_zero(2);
    if constexpr (M == 2 && N == 2) _tile_zero(3);
    for (int64_t at = 0; at < depth; ++at) {
      _tile_loadd(6, x + at * tile, stride);
      _tile_loadd(4, weights + at * kTile, 64);
      _tile_dpbf16ps(0, 4, 6);
      if constexpr (N == 2) {
        _tile_loadd(7, x + next_x + at * tile, stride);
        _tile_dpbf16ps(1, 4, 7);
      }
      if constexpr (M == 2) {
        _tile_loadd(5, weights + next_weights + at * kTile, 64);
        _tile_dpbf16ps(2, 5, 6);
      }
      if constexpr (M == 2 && N == 2) _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, parts[0], 64);
    if constexpr (N == 2) _tile_stored(1, parts[1], 64);
    if constexpr (M == 2) _tile_stored(2, parts[N], 64);
    if constexpr (M == 2 && N == 2) _tile_stored(3, parts[N + 1], 64);
    fence();
    for (int m = 0; m < M; ++m)
      for (int n = 0; n < N; ++n)
        for (int64_t row = 0; row < kSide; ++row) {
          float* sum = sums + m * next_sums + n * kTile / 4 + row * kSide;
          const __m512 factor = _mm512_set1_ps(scale[m * kSide + row][column]);
          _mm512_storeu_ps(sum, _mm512_fmadd_ps(_mm512_load_ps(parts[m * N + n] + row * kSide), factor, _mm512_loadu_ps(sum)));
        }
  }

 private:
  struct alignas(64) Shape {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};

    explicit Shape(int64_t columns) {
      for (int tile = 0; tile < 8; ++tile) {
        rows[tile] = kSide;
        row_bytes[tile] = tile == 4 || tile == 5 ? 64 : static_cast<uint16_t>(4 * columns);
      }
    }
  };

  int64_t columns_;
};

#include "tiles.inc"

std::unique_ptr<Running> start(const Product& product) {
  return product.x.kind == Values::kBF16 && product.x.rows >= kFewestRows ? start_tiles(product) : nullptr;
}

void multiply(const Product* products, int64_t count, Pool& pool) {
  run(products, count, pool, start, avx512_bf16_kernels());
}

const Kernels kKernels = {"amx", multiply};

}  // namespace amx
}  // namespace bombus
BOMBUS_TARGET_END

namespace bombus {
namespace {

// Whether the processor has AMX for bfloat16, and Linux lets this process use it. It has to be asked once.
bool permitted() {
#if defined(BOMBUS_EMULATED)
  return true;
#elif defined(__linux__)
  constexpr unsigned kBF16 = 1u << 22, kTiles = 1u << 24;      // of CPUID leaf 7, edx
  constexpr long kAskForPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
  if (!(edx & kBF16) || !(edx & kTiles)) return false;
  return syscall(SYS_arch_prctl, kAskForPermission, kTileData) == 0;
#else
  return false;
#endif
}

}  // namespace

const Kernels* amx_kernels() {
  static const bool has = avx512_bf16_kernels() && permitted();
  return has ? &amx::kKernels : nullptr;
}
}  // namespace bombus
#else
namespace bombus {
const Kernels* amx_kernels() { return nullptr; }
}  // namespace bombus
#endif
