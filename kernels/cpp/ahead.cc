#include "ahead.h"

#include "lines.h"

namespace bombus {
namespace {

// Calls by their keys. Another one of the same place takes it, and what two threads write at the same time may be mixed:
// bytes are fetched in vain then, and those of nobody do no harm.
constexpr uint64_t kCalls = 1024;
struct Call {
  std::atomic<const void*> key{nullptr};
  std::atomic<Call*> next{nullptr};
  std::atomic<bool> again{false};  // whether `next` followed more than once
  struct {
    std::atomic<const uint8_t*> at{nullptr};
    std::atomic<int64_t> count{0};
  } threads[kFetchers];
};
Call calls[kCalls];
std::atomic<Call*> now{nullptr};

constexpr auto kRelaxed = std::memory_order_relaxed;

}  // namespace

void begins(const void* key, const FirstBytes* threads) {
  Call& call = calls[(reinterpret_cast<uintptr_t>(key) / kCacheLine * 0x9e3779b97f4a7c15ull >> 32) % kCalls];
  if (call.key.exchange(key, kRelaxed) != key) call.next.store(nullptr, kRelaxed);
  for (int64_t thread = 0; thread < kFetchers; ++thread) {
    call.threads[thread].at.store(threads[thread].at, kRelaxed);
    call.threads[thread].count.store(threads[thread].count, kRelaxed);
  }
  if (Call* last = now.exchange(&call, kRelaxed)) last->again.store(last->next.exchange(&call, kRelaxed) == &call, kRelaxed);
}

FirstBytes read_next(int64_t thread) {
  const Call* call = now.load(kRelaxed);
  const Call* next = call && call->again.load(kRelaxed) ? call->next.load(kRelaxed) : nullptr;
  if (!next || thread >= kFetchers) return {};
  return {next->threads[thread].at.load(kRelaxed), next->threads[thread].count.load(kRelaxed)};
}

void fetch_next(int64_t thread) {
  constexpr int64_t kAtOnce = 1024;
  thread_local FirstBytes mine;
  thread_local int64_t done = 0;
  const uint64_t loop = loops.load(kRelaxed);
  const FirstBytes next = read_next(thread);
  if (mine.at != next.at) done = 0;
  mine = next;
  for (; done < mine.count && loops.load(kRelaxed) == loop; done += kAtOnce)
    for (int64_t byte = 0; byte < kAtOnce; byte += kCacheLine) __builtin_prefetch(mine.at + done + byte);
}

}  // namespace bombus
