// Attention without XLA, for sanitizers: random keys and values on a pool of threads, compared with float64.
//
// As in check_product.cc every buffer is exactly as long as what it holds. Slots that are not seen hold no numbers.
//
// check_attention SEED ROUNDS THREADS
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "attention.h"
#include "checking.h"
#include "kernels.h"

namespace bombus {

namespace {

uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

// Keys or values in buffers of their own.
struct Kept {
  Vectors vectors;
  std::unique_ptr<Bytes> codes, scale, zero;
  int64_t slots;

  Kept(Random& random, int64_t heads, int64_t slots, int64_t size) : slots(slots) {
    static const Codes kKinds[] = {Codes::kF32, Codes::kBF16, Codes::kF16, Codes::kE4M3, Codes::kInt8, Codes::kInt4};
    vectors.kind = kKinds[random.below(6)];
    vectors.size = size;
    const int64_t row = vectors.row_bytes();
    codes = random.buffer(heads * slots * row);
    const bool plain = vectors.kind == Codes::kF32 || vectors.kind == Codes::kBF16 || vectors.kind == Codes::kF16;
    for (int64_t at = 0; !plain && at < heads * slots * row; ++at) {
      uint8_t code = static_cast<uint8_t>(random.below(256));
      if (vectors.kind == Codes::kE4M3 && (code & 0x7f) == 0x7f) code = 1;
      codes->put<uint8_t>(at, code);
    }
    for (int64_t at = 0; plain && at < heads * slots * size; ++at) {
      if (vectors.kind == Codes::kF32) codes->put<float>(at, random.normal());
      if (vectors.kind == Codes::kBF16) codes->put<uint16_t>(at, static_cast<uint16_t>(bits_of(random.normal()) >> 16));
      if (vectors.kind == Codes::kF16)
        codes->put<uint16_t>(at, static_cast<uint16_t>(random.below(2) << 15 | random.below(17) << 10 | random.below(1024)));
    }
    vectors.codes = codes->data();
    if (plain) return;
    vectors.scale_of_head = random.below(3) == 0;
    const int64_t scales = vectors.scale_of_head ? heads : heads * slots;
    scale = random.buffer(scales * 4);
    const float unit = vectors.kind == Codes::kInt4 ? 8.0f : vectors.kind == Codes::kInt8 ? 128.0f : 448.0f;
    for (int64_t at = 0; at < scales; ++at) scale->put<float>(at, std::fabs(random.normal()) * 2.0f / unit);
    vectors.scale = reinterpret_cast<const float*>(scale->data());
    if (random.below(2)) return;
    zero = random.buffer(heads * slots * 4);
    for (int64_t at = 0; at < heads * slots; ++at) zero->put<float>(at, random.normal());
    vectors.zero = reinterpret_cast<const float*>(zero->data());
  }

  void spoil(int64_t head, int64_t slot) {
    const int64_t row = vectors.row_bytes();
    std::memset(codes->data() + (head * slots + slot) * row, 0x7f, static_cast<size_t>(row));
    const float none = std::numeric_limits<float>::quiet_NaN();
    if (scale && !vectors.scale_of_head) scale->put<float>(head * slots + slot, none);
    if (zero) zero->put<float>(head * slots + slot, none);
  }

  double value(int64_t head, int64_t slot, int64_t h) const {
    const int64_t row = head * slots + slot, at = row * vectors.size + h, half = vectors.size / 2;
    double value = 0.0;
    switch (vectors.kind) {
      case Codes::kF32: value = float_at(*codes, at); break;
      case Codes::kBF16: value = bfloat16_at(*codes, at); break;
      case Codes::kF16: value = float16_at(*codes, at); break;
      case Codes::kE4M3: value = decode(codes->get<uint8_t>(at), 4, 3, 'n'); break;
      case Codes::kInt8: value = codes->get<int8_t>(at); break;
      default: value = (codes->get<uint8_t>(row * half + h % half) >> (h < half ? 0 : 4) & 15) - 8;
    }
    if (scale) value *= float_at(*scale, vectors.scale_of_head ? head : row);
    return zero ? value + float_at(*zero, row) : value;
  }
};

struct Case {
  Attention call;
  std::vector<Source> sources;
  std::vector<Kept> keys, values;
  std::vector<std::unique_ptr<Bytes>> masks;
  std::unique_ptr<Bytes> q, sinks, out;

  explicit Case(Random& random) {
    static const int64_t kSizes[] = {2, 16, 24, 32, 64, 80, 128};
    call.batch = 1 + random.below(2);
    call.all_tokens = call.tokens = random.below(2) ? 1 : 1 + random.below(random.below(6) ? 3 : 40);
    call.kv_heads = 1 + random.below(3);
    call.heads = call.kv_heads * (1 + random.below(random.below(4) ? 4 : 12));
    call.key_size = kSizes[random.below(7)];
    call.value_size = kSizes[random.below(7)];
    call.scale = 0.2f;
    call.softcap = random.below(3) ? 0.0f : 2.0f;
    const int64_t heads = call.batch * call.kv_heads, count = 1 + random.below(3);
    keys.reserve(3);
    values.reserve(3);
    for (int64_t index = 0; index < count; ++index) {
      Source source;
      source.slots = 1 + random.below(random.below(6) ? 80 : 400);
      keys.emplace_back(random, heads, source.slots, call.key_size);
      values.emplace_back(random, heads, source.slots, call.value_size);
      source.keys = keys.back().vectors;
      source.values = values.back().vectors;
      const int64_t seen = random.below(5);
      masks.push_back(random.buffer(call.batch * call.tokens * source.slots));
      for (int64_t at = 0; at < call.batch * call.tokens * source.slots; ++at)
        masks.back()->put<uint8_t>(at, random.below(4) < seen);
      for (int64_t head = 0; head < heads; ++head)
        for (int64_t slot = 0; slot < source.slots; ++slot) {
          bool any = false;
          for (int64_t token = 0; token < call.tokens; ++token)
            any |= masks.back()->get<uint8_t>((head / call.kv_heads * call.tokens + token) * source.slots + slot);
          if (any) continue;
          keys.back().spoil(head, slot);
          values.back().spoil(head, slot);
        }
      source.mask = masks.back()->data();
      sources.push_back(source);
    }
    call.sources = sources.data();
    call.count = count;
    const int64_t rows = call.batch * call.tokens * call.heads;
    call.q_kind = random.below(2) ? Values::kF32 : Values::kBF16;
    q = random.buffer(rows * call.key_size * (call.q_kind == Values::kF32 ? 4 : 2));
    for (int64_t at = 0; at < rows * call.key_size; ++at) {
      if (call.q_kind == Values::kF32) q->put<float>(at, random.normal());
      else q->put<uint16_t>(at, static_cast<uint16_t>(bits_of(random.normal()) >> 16));
    }
    call.q = q->data();
    if (random.below(2)) {
      sinks = random.buffer(call.heads * 4);
      for (int64_t at = 0; at < call.heads; ++at) sinks->put<float>(at, random.normal());
      call.sinks = reinterpret_cast<const float*>(sinks->data());
    }
    out = random.buffer(rows * call.value_size * 4);
    std::memset(out->data(), 0xff, out->size());
    call.out = out->data();
  }

  bool right(const char* kernels) const {
    const int64_t group = call.heads / call.kv_heads;
    std::vector<double> mixed(static_cast<size_t>(call.value_size));
    for (int64_t place = 0; place < call.batch * call.tokens * call.heads; ++place) {
      const int64_t n = place % call.heads, row = place / call.heads / call.tokens;
      const int64_t head = row * call.kv_heads + n / group;
      double sum = sinks ? std::exp(float_at(*sinks, n)) : 0.0;
      std::fill(mixed.begin(), mixed.end(), 0.0);
      for (size_t index = 0; index < sources.size(); ++index)
        for (int64_t slot = 0; slot < sources[index].slots; ++slot) {
          if (!masks[index]->get<uint8_t>(place / call.heads * sources[index].slots + slot)) continue;
          double score = 0.0;
          for (int64_t h = 0; h < call.key_size; ++h) {
            const int64_t at = place * call.key_size + h;
            score += (call.q_kind == Values::kF32 ? float_at(*q, at) : bfloat16_at(*q, at)) * keys[index].value(head, slot, h);
          }
          score *= call.scale;
          if (call.softcap != 0.0f) score = call.softcap * std::tanh(score / call.softcap);
          const double share = std::exp(score);
          sum += share;
          for (int64_t h = 0; h < call.value_size; ++h) mixed[static_cast<size_t>(h)] += share * values[index].value(head, slot, h);
        }
      for (int64_t h = 0; h < call.value_size; ++h) {
        const double expected = sum == 0.0 ? 0.0 : mixed[static_cast<size_t>(h)] / sum;
        const double found = float_at(*out, place * call.value_size + h);
        if (std::fabs(found - expected) <= 2e-4) continue;
        std::printf("%s: query %d, dimension %d is %g, not %g; kinds %d and %d\n", kernels, static_cast<int>(place),
                    static_cast<int>(h), found, expected, static_cast<int>(keys[0].vectors.kind), static_cast<int>(values[0].vectors.kind));
        return false;
      }
    }
    return true;
  }
};

// Callers of their own and tasks of the pool attend at the same time, and wait for each other's tasks.
bool check_all(const Kernels& kernels, uint64_t seed, int rounds, int threads, std::atomic<int>& compared) {
  std::atomic<bool> right{true};
  std::atomic<int> left{rounds};
  {
    Threads pool(threads);
    const auto run = [&] {
      for (int round; right && (round = --left) >= 0;) {
        Random random{std::mt19937_64(seed * 1000003 + static_cast<uint64_t>(round))};
        const Case one(random);
        attend(one.call, pool);
        if (!one.right(kernels.name)) right = false;
        ++compared;
      }
    };
    for (int task = 0; task + 1 < threads; ++task) pool.schedule(run);
    std::thread other(run);
    run();
    other.join();
  }
  return right;
}

}  // namespace
}  // namespace bombus

int main(int count, char** arguments) {
  using namespace bombus;
  if (count != 4) return 2;
  const uint64_t seed = std::strtoull(arguments[1], nullptr, 10);
  const int rounds = std::atoi(arguments[2]), threads = std::atoi(arguments[3]);
  std::atomic<int> compared{0};
  for (const Kernels* kernels : {plain_kernels(), avx2_kernels(), avx512_kernels(), avx512_bf16_kernels()}) {
    if (!kernels) continue;
    if (!choose(kernels->name) || &active() != kernels) return 1;
    if (!check_all(active(), seed, rounds, threads, compared)) return 1;
    std::printf("%s ", kernels->name);
  }
  std::printf("%d products are right\n", compared.load());
  return 0;
}
