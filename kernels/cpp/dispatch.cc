// Which kernels run: chosen at run time, so that one library runs on every processor of its family.
#include <atomic>
#include <cstring>
#include <string>

#include "kernels.h"
#include "lines.h"
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

const Kernels& between() {
  if (active().attend) return active();
  for (const Kernels* kernels : {avx512_kernels(), avx2_kernels()})
    if (kernels) return *kernels;
  return *plain_kernels();
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
    // From front to back, with what comes later asked for, as the products read: of all ways the fastest.
    uint64_t sums[8] = {}, words[8];
    int64_t at = first;
    for (; at + kCacheLine <= last; at += kCacheLine) {
      __builtin_prefetch(bytes + at + kAhead, 0, kOnce);
      std::memcpy(words, bytes + at, sizeof words);
      for (int lane = 0; lane < 8; ++lane) sums[lane] += words[lane];
    }
    uint64_t sum = 0;
    for (; at + 8 <= last; at += 8) {
      std::memcpy(words, bytes + at, 8);
      sum += words[0];
    }
    for (; at < last; ++at) sum += bytes[at];
    for (const uint64_t lane : sums) sum += lane;
    total.fetch_add(sum, std::memory_order_relaxed);
  });
  return total.load();
}

}  // namespace bombus
