// Kernels for AVX-512 VBMI and BF16: few rows of bfloat16, whose products with decoded codes are exact. All else is left
// to AVX-512.
#include <cstdint>
#include <cstring>
#include <memory>
#include <type_traits>
#include <vector>

#include "kernels.h"
#include "running.h"
#include "stored.h"
#include "target.h"

#if defined(BOMBUS_BF16)
#include BOMBUS_INTRINSICS

BOMBUS_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512bf16,avx2,fma")
namespace bombus {
namespace avx512_bf16 {

#include "bf16.inc"

constexpr int64_t kMostRows = 4;
constexpr int kLanes = 16;  // of float32
constexpr int kOutputs = 4;  // rows of the weight at a time: streams enough for the prefetchers
constexpr int64_t kMostCodes = 128;

// Rows of x in the decoder's order with zeros behind them, and with zero points the sums of each block's lanes.
template <class D>
struct Prepared {
  std::vector<uint16_t> x;
  std::vector<float> sums;

  Prepared(const Rows& rows, const Layout<D>& layout, bool zeros) {
    const size_t count = rows.rows == 3 ? 4 : static_cast<size_t>(rows.rows);  // three run as four
    x.resize(count * static_cast<size_t>(layout.padded));
    if (zeros) sums.resize(count * static_cast<size_t>(layout.blocks * kLanes));
  }

  void fill(const Rows& rows, const Layout<D>& layout, int64_t row) {
    int64_t order[kMostCodes];
    for (int vector = 0; vector < D::kVectors; ++vector)
      for (int word = 0; word < 32; ++word) order[32 * vector + word] = D::position(vector, word);
    uint16_t* out = x.data() + row * layout.padded;
    for (int64_t first = 0; first < layout.padded; first += D::kCodes)
      for (int64_t code = 0; code < D::kCodes; ++code) {
        const int64_t input = first + order[code];
        out[first + code] = input < rows.inputs ? read<uint16_t>(rows.values, row * rows.inputs + input) : 0;
      }
    if (sums.empty()) return;
    float* sum = sums.data() + row * layout.blocks * kLanes;
    for (int64_t block = 0; block < layout.blocks; ++block)
      for (int lane = 0; lane < kLanes; ++lane) {
        float total = 0.0f;
        for (int vector = 0; vector < D::kVectors; ++vector)
          for (int word = 2 * lane; word < 2 * lane + 2; ++word)
            total += from_bits(static_cast<uint32_t>(out[block * D::kCodes + 32 * vector + word]) << 16);
        sum[block * kLanes + lane] = total;
      }
  }
};

// The scales, and zero points, of the last rows of tiles that were asked for, with room behind them for `spread`.
struct Grid {
  const Matrix& weight;
  int64_t width;
  std::vector<float> scales, zeros;
  int64_t tags[kOutputs];

  explicit Grid(const Matrix& weight) : weight(weight), width(weight.grid_columns + kLanes) {
    scales.resize(static_cast<size_t>(kOutputs * width));
    if (weight.zero) zeros.resize(static_cast<size_t>(kOutputs * width));
    for (int64_t& tag : tags) tag = -1;
  }

  // The place of the row of tiles that a row of the weight is in. Those of kOutputs rows in turn stay.
  int64_t load(int64_t output) {
    const int64_t row = output / weight.tile_rows, slot = row % kOutputs;
    if (tags[slot] != row) {
      tags[slot] = row;
      read_scales(weight, row, scales.data() + slot * width);
      for (int64_t column = 0; weight.zero && column < weight.grid_columns; ++column)
        zeros[static_cast<size_t>(slot * width + column)] =
            static_cast<float>(weight.zero[row * weight.grid_columns + column]) - 8.0f;  // decoders take 8 off already
    }
    return slot * width;
  }
};

inline float sum_of(__m512 value) {
  const __m256 high = _mm256_castsi256_ps(_mm512_extracti64x4_epi64(_mm512_castps_si512(value), 1));
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(value), high);
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  four = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}

// kOutputs rows of the weight from `output` on, of which the first `outputs` count, times R rows of x, the same.
template <class D, int R, bool kInLanes, bool kZeros>
void stream(const Matrix& weight, const Layout<D>& layout, const Prepared<D>& prepared, Grid& grid, int64_t rows,
            int64_t output, int64_t outputs, float* y) {
  constexpr int W = kOutputs;
  const D decoder;
  const int64_t row_bytes = weight.row_bytes();
  const uint8_t* codes[W];
  const float* scales[W];
  const float* zeros[W] = {};
  Tail<D> tails[W];
  for (int w = 0; w < W; ++w) {
    const int64_t row = output + (w < outputs ? w : outputs - 1);
    codes[w] = weight.codes + row * row_bytes;
    const int64_t place = grid.load(row);
    scales[w] = grid.scales.data() + place;
    if (kZeros) zeros[w] = grid.zeros.data() + place;
    if (layout.tail) tails[w].copy(codes[w], layout, row_bytes);
  }
  // Which of a block's numbers each lane takes.
  alignas(64) int32_t lanes[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = static_cast<int32_t>(lane * layout.groups / kLanes);
  const __m512i index = _mm512_loadu_si512(lanes);
  const auto of_segment = [&](const float* numbers, int64_t at) {
    return kInLanes ? _mm512_permutexvar_ps(index, _mm512_loadu_ps(numbers + at * layout.groups))
                    : _mm512_set1_ps(numbers[at / layout.segment]);
  };
  __m512 sums[W][R], parts[W][R];
  for (int w = 0; w < W; ++w)
    for (int r = 0; r < R; ++r) sums[w][r] = _mm512_setzero_ps();
  const auto block = [&](int64_t at, int w, const uint8_t* bytes) __attribute__((always_inline)) {
    __m512i values[D::kVectors];
    decoder.decode(bytes, values);
    for (int r = 0; r < R; ++r) {
      const uint16_t* x = prepared.x.data() + r * layout.padded + at * D::kCodes;
      for (int v = 0; v < D::kVectors; ++v) parts[w][r] = dot(parts[w][r], values[v], _mm512_loadu_si512(x + 32 * v));
    }
    if (kZeros) {
      const __m512 zero = of_segment(zeros[w], at);
      for (int r = 0; r < R; ++r) {
        const float* sum = prepared.sums.data() + (r * layout.blocks + at) * kLanes;
        parts[w][r] = _mm512_fnmadd_ps(zero, _mm512_loadu_ps(sum), parts[w][r]);
      }
    }
  };
  for (int64_t first = 0; first < layout.blocks; first += layout.segment) {
    const int64_t end = first + layout.segment, whole = end < layout.full ? end : layout.full;
    for (int w = 0; w < W; ++w)
      for (int r = 0; r < R; ++r) parts[w][r] = _mm512_setzero_ps();
    for (int64_t at = first; at < whole; ++at)
      for (int w = 0; w < W; ++w) block(at, w, codes[w] + at * D::kBytes);
    if (layout.tail && end >= layout.blocks)
      for (int w = 0; w < W; ++w) block(layout.full, w, tails[w].bytes);
    for (int w = 0; w < W; ++w) {
      const __m512 scale = of_segment(scales[w], first);
      for (int r = 0; r < R; ++r) sums[w][r] = _mm512_fmadd_ps(parts[w][r], scale, sums[w][r]);
    }
  }
  for (int w = 0; w < W && w < outputs; ++w)
    for (int r = 0; r < R && r < rows; ++r) y[r * weight.outputs + output + w] = sum_of(sums[w][r]);
}

template <class D>
class Stream final : public Running {
 public:
  explicit Stream(const Product& product)
      : Running(product), layout_(product.weight), prepared_(product.x, layout_, product.weight.zero != nullptr) {}

  void prepare(int64_t first, int64_t last) override {
    for (int64_t row = first; row < last; ++row) prepared_.fill(product.x, layout_, row);
  }

  int64_t outputs_of_a_part(int64_t threads) const override {
    // Small enough that nobody waits long for the last part, large enough for its start not to count.
    const int64_t share = product.weight.outputs / (threads * 8);
    return (share < 16 ? 16 : share > 512 ? 512 : share) / kOutputs * kOutputs;
  }

  void part(int64_t first, int64_t last) override {
    if (product.x.rows == 1) rows<1>(first, last);
    else if (product.x.rows == 2) rows<2>(first, last);
    else rows<4>(first, last);
  }

 private:
  template <int R>
  void rows(int64_t first, int64_t last) const {
    if constexpr (D::kRun > 0)
      if (layout_.mode == Layout<D>::kLanes) return zeros<R, true>(first, last);
    zeros<R, false>(first, last);
  }

  template <int R, bool kInLanes>
  void zeros(int64_t first, int64_t last) const {
    if constexpr (std::is_same_v<D, Int4>)
      if (product.weight.zero) return all<R, kInLanes, true>(first, last);
    all<R, kInLanes, false>(first, last);
  }

  template <int R, bool kInLanes, bool kZeros>
  void all(int64_t first, int64_t last) const {
    Grid grid(product.weight);
    for (; first < last; first += kOutputs)
      stream<D, R, kInLanes, kZeros>(product.weight, layout_, prepared_, grid, product.x.rows, first,
                                     last - first < kOutputs ? last - first : kOutputs, product.y);
  }

  Layout<D> layout_;
  Prepared<D> prepared_;
};

template <class D>
std::unique_ptr<Running> start_with(const Product& product) {
  if (product.weight.zero && !std::is_same_v<D, Int4>) return nullptr;
  if (Layout<D>(product.weight).mode == Layout<D>::kExpanded) return nullptr;
  return std::make_unique<Stream<D>>(product);
}

std::unique_ptr<Running> start(const Product& product) {
  if (product.x.kind != Values::kBF16 || product.x.rows > kMostRows) return nullptr;
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
