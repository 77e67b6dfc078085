// Kernels for AVX-512 VBMI and BF16: few rows of bfloat16, whose products with decoded codes are exact. All else is left
// to AVX-512; integers too, which it decodes faster than they are looked up here.
#include <cstdint>
#include <cstring>
#include <memory>
#include <type_traits>
#include <utility>
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

#include "avx512.inc"
#include "bf16.inc"

// Values in pairs, whose products go to one lane.
struct Isa : Floats {
  static constexpr int kWords = 32;
  using V = __m512i;
  using Word = uint16_t;
  static uint16_t word(float value) { return bfloat16(value); }
  static V words(const uint16_t* from) { return _mm512_loadu_si512(from); }
  static F dot(V weights, V x, F sum) { return _mm512_dpbf16_ps(sum, (__m512bh)weights, (__m512bh)x); }
};

#include "product.inc"

template <class D>
std::unique_ptr<Running> start_with(const Product& product) {
  if (!streamed<D>(product, Layout<D>(product.weight))) return nullptr;
  return std::make_unique<RunningWith<D>>(product);
}

std::unique_ptr<Running> start(const Product& product) {
  if (product.x.kind != Values::kBF16) return nullptr;
  switch (product.weight.kind) {
    case Codes::kBF16: return start_with<BF16>(product);
    case Codes::kE4M3: return start_with<E4M3>(product);
    case Codes::kE5M2: return start_with<E5M2>(product);
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
