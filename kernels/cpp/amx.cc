// Kernels for AMX: four rows of bfloat16 and more. 16 rows of the weight times 16 of x at a time, 32 inputs at a time.
// Fewer rows, and weights whose scales change within 32 inputs, are left to AVX-512.
//
// The weight is the left factor: its codes are decoded in the order in which they are stored, each weight once for all
// rows of x (up to kPanel). x is the right one, and is transposed to pairs of inputs before. A tile's partial sums are
// multiplied with its scales in float32.
#include <cstdint>
#include <cstring>
#include <memory>
#include <type_traits>
#include <vector>

#include "kernels.h"
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
constexpr int64_t kSide = 16;           // rows of a tile, of the weight or of x
constexpr int64_t kDepth = 32;          // inputs of a tile
constexpr int64_t kTile = 1024;         // bytes
constexpr int64_t kMostOutputs = 64;    // of a part: four tiles
constexpr int64_t kSteps = 8;           // tiles along the inputs that are decoded at once: 32 KB, in the L1 cache
constexpr int64_t kPanel = 512;         // rows of x for which a weight is decoded once: their sums are in the L2 cache

// What was written before is in memory, and what is written after is not there yet: compilers do not know what the
// tile instructions read.
inline void fence() { __asm__ volatile("" ::: "memory"); }

// Tiles 0 to 3 are sums, 4 and 5 rows of the weight, 6 and 7 columns of x.
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

// Adds to M x N tiles of sums, which lie behind each other (N first); or puts them there.
template <int M, int N>
inline void multiply_tiles(const uint8_t* weights, int64_t next_weights, const uint8_t* x, int64_t next_x, int64_t columns,
                           int64_t depth, float* sums, int64_t next_sums, bool add) {
  const int64_t stride = 4 * columns, tile = stride * kSide;
  fence();
  if (add) {
    _tile_loadd(0, sums, 64);
    if constexpr (N == 2) _tile_loadd(1, sums + kTile / 4, 64);
    if constexpr (M == 2) _tile_loadd(2, sums + next_sums, 64);
    if constexpr (M == 2 && N == 2) _tile_loadd(3, sums + next_sums + kTile / 4, 64);
  } else {
    _tile_zero(0);
    if constexpr (N == 2) _tile_zero(1);
    if constexpr (M == 2) _tile_zero(2);
    if constexpr (M == 2 && N == 2) _tile_zero(3);
  }
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
  _tile_stored(0, sums, 64);
  if constexpr (N == 2) _tile_stored(1, sums + kTile / 4, 64);
  if constexpr (M == 2) _tile_stored(2, sums + next_sums, 64);
  if constexpr (M == 2 && N == 2) _tile_stored(3, sums + next_sums + kTile / 4, 64);
  fence();
}

// 16 x 16 words of 32 bits, transposed.
inline void transpose(__m512i* rows) {
  __m512i two[16];
  for (int at = 0; at < 16; at += 4) {
    const __m512i a = _mm512_unpacklo_epi32(rows[at], rows[at + 1]), b = _mm512_unpackhi_epi32(rows[at], rows[at + 1]);
    const __m512i c = _mm512_unpacklo_epi32(rows[at + 2], rows[at + 3]), d = _mm512_unpackhi_epi32(rows[at + 2], rows[at + 3]);
    two[at] = _mm512_unpacklo_epi64(a, c);
    two[at + 1] = _mm512_unpackhi_epi64(a, c);
    two[at + 2] = _mm512_unpacklo_epi64(b, d);
    two[at + 3] = _mm512_unpackhi_epi64(b, d);
  }
  // two[4 * i + j] holds column 4 * k + j of rows 4 * i and on in its quarter k.
  for (int j = 0; j < 4; ++j) {
    const __m512i a = _mm512_shuffle_i32x4(two[j], two[4 + j], 0x88), b = _mm512_shuffle_i32x4(two[8 + j], two[12 + j], 0x88);
    const __m512i c = _mm512_shuffle_i32x4(two[j], two[4 + j], 0xdd), d = _mm512_shuffle_i32x4(two[8 + j], two[12 + j], 0xdd);
    rows[j] = _mm512_shuffle_i32x4(a, b, 0x88);
    rows[4 + j] = _mm512_shuffle_i32x4(c, d, 0x88);
    rows[8 + j] = _mm512_shuffle_i32x4(a, b, 0xdd);
    rows[12 + j] = _mm512_shuffle_i32x4(c, d, 0xdd);
  }
}

template <class D>
class Tiles final : public Running {
 public:
  static constexpr int64_t kStep = kSteps * kDepth / D::kCodes;  // blocks

  explicit Tiles(const Product& product) : Running(product), layout_(product.weight) {
    const Matrix& weight = product.weight;
    columns_ = product.x.rows < kSide ? product.x.rows : kSide;
    depth_ = layout_.padded / kDepth;
    const bool one = weight.scale_kind == Scales::kNone || weight.tile_columns >= weight.inputs;
    segment_ = one ? depth_ : weight.tile_columns / kDepth;
    const int64_t tiles = (product.x.rows + kSide - 1) / kSide * depth_;
    x_.resize(static_cast<size_t>(tiles * kSide * 4 * columns_) + 64);  // the last row is stored with 16 words
  }

  // Tiles of 16 pairs of inputs times the rows of x.
  void prepare(int64_t first, int64_t last) override {
    const Rows& x = product.x;
    const auto* values = static_cast<const uint8_t*>(x.values) + 2 * first * x.inputs;
    uint8_t* out = x_.data() + first / kSide * next_x();
    for (int64_t at = 0; at < depth_; ++at) {
      const int64_t input = at * kDepth, left = x.inputs - input;
      __m512i rows[kSide];
      for (int64_t row = 0; row < kSide; ++row) {
        const uint8_t* from = values + 2 * (row * x.inputs + input);
        if (first + row >= last || left <= 0) {
          rows[row] = _mm512_setzero_si512();
        } else if (left >= kDepth) {
          rows[row] = _mm512_loadu_si512(from);
        } else {
          uint16_t some[kDepth] = {};
          std::memcpy(some, from, static_cast<size_t>(2 * left));
          rows[row] = _mm512_loadu_si512(some);
        }
      }
      transpose(rows);
      // Where there are fewer columns than are stored, the next row overwrites those behind them.
      for (int64_t row = 0; row < kSide; ++row) _mm512_storeu_si512(out + (at * kSide + row) * 4 * columns_, rows[row]);
    }
  }

  int64_t outputs_of_a_part(int64_t threads) const override {
    const int64_t share = product.weight.outputs / (threads * 2);
    return share >= kMostOutputs ? kMostOutputs : share >= 2 * kSide ? 2 * kSide : kSide;
  }

  void part(int64_t first, int64_t last) override {
    const Matrix& weight = product.weight;
    // Every row's scales, the same for those in one row of tiles.
    std::vector<float> scales(static_cast<size_t>((last - 1) / weight.tile_rows - first / weight.tile_rows + 1) *
                              static_cast<size_t>(weight.grid_columns));
    const float* scale[kMostOutputs];
    for (int64_t w = 0; w < kMostOutputs; ++w) {
      const int64_t output = first + w < last ? first + w : last - 1, row = output / weight.tile_rows;
      float* at = scales.data() + (row - first / weight.tile_rows) * weight.grid_columns;
      if (w == 0 || (output % weight.tile_rows == 0 && first + w < last))
        read_scales(weight, row * weight.grid_columns, weight.grid_columns, weight.factor, at);
      scale[w] = at;
    }
    const Shape shape(columns_);
    __asm__ volatile("" ::"r"(&shape) : "memory");
    _tile_loadconfig(&shape);
    for (int64_t row = 0; row < product.x.rows; row += kPanel)
      panel(row, row + kPanel < product.x.rows ? row + kPanel : product.x.rows, first, last, scale);
    _tile_release();
  }

 private:
  int64_t next_x() const { return depth_ * kSide * 4 * columns_; }  // bytes from 16 rows of x to the next

  // Some rows of x times some of the weight.
  void panel(int64_t first_row, int64_t last_row, int64_t first, int64_t last, const float* const* scale) const {
    const int64_t tiles = (last - first + kSide - 1) / kSide, blocks = (last_row - first_row + kSide - 1) / kSide;
    alignas(64) uint8_t weights[kMostOutputs / kSide * kSteps * kTile];
    if (tiles * kSide > last - first) std::memset(weights, 0, sizeof weights);
    // Tiles of sums: those of the same rows of the weight behind each other.
    std::vector<float> sums(static_cast<size_t>(tiles * blocks * kTile / 4));
    for (int64_t begin = 0; begin < layout_.blocks; begin += kStep) {
      const int64_t end = begin + kStep < layout_.blocks ? begin + kStep : layout_.blocks;
      for (int64_t output = first; output < last; ++output)
        decode(output, begin, end, weights + (output - first) / kSide * kSteps * kTile + (output - first) % kSide * 64);
      const int64_t from = begin * D::kVectors, to = end * D::kVectors;
      for (int64_t block = 0; block < blocks; block += 2)
        for (int64_t tile = 0; tile < tiles; tile += 2) {
          const uint8_t* x = x_.data() + (first_row / kSide + block) * next_x();
          const uint8_t* left = weights + tile * kSteps * kTile;
          float* to_add = sums.data() + (tile * blocks + block) * kTile / 4;
          const float* const* scales = scale + tile * kSide;
          if (tile + 1 < tiles && block + 1 < blocks) group<2, 2>(left, x, from, to, to_add, blocks, scales);
          else if (tile + 1 < tiles) group<2, 1>(left, x, from, to, to_add, blocks, scales);
          else if (block + 1 < blocks) group<1, 2>(left, x, from, to, to_add, blocks, scales);
          else group<1, 1>(left, x, from, to, to_add, blocks, scales);
        }
    }
    for (int64_t tile = 0; tile < tiles; ++tile)
      for (int64_t block = 0; block < blocks; ++block) {
        const int64_t output = first + tile * kSide, row = first_row + block * kSide;
        finish(sums.data() + (tile * blocks + block) * kTile / 4, scale + tile * kSide, row,
               last_row - row < kSide ? last_row - row : kSide, output, last - output < kSide ? last - output : kSide);
      }
  }

  // Some blocks of a row of the weight, 64 bytes to each tile.
  void decode(int64_t output, int64_t begin, int64_t end, uint8_t* out) const {
    const Matrix& weight = product.weight;
    const uint8_t* codes = weight.codes + output * weight.row_bytes();
    const D decoder;
    Tail<D> tail;
    for (int64_t at = begin; at < end; ++at, out += D::kVectors * kTile) {
      const uint8_t* bytes = codes + at * D::kBytes;
      if (at == layout_.full) {
        tail.copy(codes, layout_, weight.row_bytes());
        bytes = tail.bytes;
      } else if (at + kStep < layout_.full) {
        _mm_prefetch(reinterpret_cast<const char*>(bytes + kStep * D::kBytes), _MM_HINT_T0);
      }
      __m512i values[D::kVectors];
      if constexpr (std::is_same_v<D, Int4>) {
        if (weight.zero) {
          const uint8_t* zeros = weight.zero + output / weight.tile_rows * weight.grid_columns;
          for (int64_t vector = 0; vector < D::kVectors; ++vector) {
            const int64_t column = (at * D::kVectors + vector) / segment_;
            const int zero = zeros[column < weight.grid_columns ? column : weight.grid_columns - 1];
            values[vector] = D::in_order(bytes + 16 * vector, D::less(zero));
          }
        } else {
          decoder.in_order(bytes, values);
        }
      } else {
        decoder.in_order(bytes, values);
      }
      for (int64_t vector = 0; vector < D::kVectors; ++vector) _mm512_store_si512(out + vector * kTile, values[vector]);
    }
  }

  // M x N tiles of y, over the tiles `from` to `to` of the inputs.
  template <int M, int N>
  void group(const uint8_t* weights, const uint8_t* x, int64_t from, int64_t to, float* sums, int64_t blocks,
             const float* const* scale) const {
    const int64_t next_sums = blocks * kTile / 4;
    const int64_t tile = kSide * 4 * columns_;
    if (segment_ >= depth_)
      return multiply_tiles<M, N>(weights, kSteps * kTile, x + from * tile, next_x(), columns_, to - from, sums, next_sums,
                                  from > 0);
    alignas(64) float parts[M * N * kTile / 4];
    if (columns_ < kSide) std::memset(parts, 0, sizeof parts);
    for (int64_t at = from; at < to;) {
      const int64_t column = at / segment_, end = (column + 1) * segment_ < to ? (column + 1) * segment_ : to;
      multiply_tiles<M, N>(weights + (at - from) * kTile, kSteps * kTile, x + at * tile, next_x(), columns_, end - at, parts,
                           N * kTile / 4, false);
      at = end;
      if (column >= product.weight.grid_columns) continue;  // behind the last input
      for (int m = 0; m < M; ++m)
        for (int n = 0; n < N; ++n)
          for (int64_t row = 0; row < kSide; ++row) {
            const float* part = parts + (m * N + n) * kTile / 4 + row * kSide;
            float* sum = sums + m * next_sums + n * kTile / 4 + row * kSide;
            const __m512 factor = _mm512_set1_ps(scale[m * kSide + row][column]);
            _mm512_storeu_ps(sum, _mm512_fmadd_ps(_mm512_load_ps(part), factor, _mm512_loadu_ps(sum)));
          }
    }
  }

  // Puts a tile of sums into y.
  void finish(const float* sums, const float* const* scale, int64_t row, int64_t rows, int64_t output, int64_t outputs) const {
    __m512i words[kSide];
    for (int64_t w = 0; w < kSide; ++w) {
      __m512 sum = _mm512_loadu_ps(sums + w * kSide);
      if (segment_ >= depth_) sum = _mm512_mul_ps(sum, _mm512_set1_ps(scale[w][0]));
      words[w] = _mm512_castps_si512(sum);
    }
    transpose(words);
    for (int64_t r = 0; r < rows; ++r) {
      float* y = product.y + (row + r) * product.weight.outputs + output;
      if (outputs == kSide) {
        _mm512_storeu_si512(y, words[r]);
      } else {
        alignas(64) float some[kSide];
        _mm512_store_si512(some, words[r]);
        std::memcpy(y, some, static_cast<size_t>(outputs) * sizeof(float));
      }
    }
  }

  Layout<D> layout_;
  int64_t columns_, depth_, segment_;  // rows of x in a tile; tiles along the inputs, in all and with one scale
  std::vector<uint8_t> x_;
};

template <class D>
std::unique_ptr<Running> start_with(const Product& product) {
  const Matrix& weight = product.weight;
  if (weight.zero && !std::is_same_v<D, Int4>) return nullptr;
  const bool one = weight.scale_kind == Scales::kNone || weight.tile_columns >= weight.inputs;
  if (!one && weight.tile_columns % kDepth) return nullptr;
  return std::make_unique<Tiles<D>>(product);
}

std::unique_ptr<Running> start(const Product& product) {
  if (product.x.kind != Values::kBF16 || product.x.rows < kFewestRows || product.weight.inputs == 0) return nullptr;
  switch (product.weight.kind) {
    case Codes::kBF16: return start_with<BF16>(product);
    case Codes::kE4M3: return start_with<E4M3>(product);
    case Codes::kE5M2: return start_with<E5M2>(product);
    case Codes::kInt8: return start_with<Int8>(product);
    case Codes::kInt4: return start_with<Int4>(product);
    case Codes::kE2M1: return start_with<E2M1>(product);
    default: return nullptr;
  }
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
