// Which kernels run: chosen at run time, so that one library runs on every processor of its family.
#include <atomic>
#include <cstring>
#include <string>

#include "kernels.h"
#include "parallel.h"

namespace bombus {
namespace {

const Kernels* best() {
  if (const Kernels* found = amx_kernels()) return found;
  if (const Kernels* found = avx512_bf16_kernels()) return found;
  if (const Kernels* found = avx512_kernels()) return found;
  if (const Kernels* found = avx2_kernels()) return found;
  return plain_kernels();
}

std::atomic<const Kernels*> chosen{nullptr};

}  // namespace

const Kernels& active() {
  const Kernels* now = chosen.load(std::memory_order_acquire);
  if (!now) chosen.store(now = best(), std::memory_order_release);
  return *now;
}

bool choose(const char* name) {
  const Kernels* found = nullptr;
  if (!*name) found = best();
  for (const Kernels* kernels : {amx_kernels(), avx512_bf16_kernels(), avx512_kernels(), avx2_kernels(), plain_kernels()})
    if (kernels && std::strcmp(kernels->name, name) == 0) found = kernels;
  if (found) chosen.store(found, std::memory_order_release);
  return found != nullptr;
}

uint64_t read_all(const uint8_t* bytes, int64_t size, Pool& pool) {
  constexpr int64_t kPart = 1 << 20;
  std::atomic<uint64_t> total{0};
  parallel(pool, (size + kPart - 1) / kPart, [&](int64_t part) {
    const int64_t first = part * kPart, last = first + kPart < size ? first + kPart : size;
    // Four streams at a time, as the products have them: that is what the prefetchers like best.
    const int64_t quarter = (last - first) / 256 * 64;
    uint64_t sums[4][8] = {};
    for (int64_t at = 0; at < quarter; at += 64)
      for (int stream = 0; stream < 4; ++stream) {
        uint64_t words[8];
        std::memcpy(words, bytes + first + stream * quarter + at, sizeof words);
        for (int lane = 0; lane < 8; ++lane) sums[stream][lane] += words[lane];
      }
    uint64_t sum = 0;
    int64_t at = first + 4 * quarter;
    for (uint64_t word; at + 8 <= last; at += 8) {
      std::memcpy(&word, bytes + at, sizeof word);
      sum += word;
    }
    for (; at < last; ++at) sum += bytes[at];
    for (const auto& stream : sums)
      for (const uint64_t lane : stream) sum += lane;
    total.fetch_add(sum, std::memory_order_relaxed);
  });
  return total.load();
}

}  // namespace bombus
