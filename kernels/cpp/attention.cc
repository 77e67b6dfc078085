// How attention is cut into parts: by key/value head, and where these are few by the slots that are seen.
#include "attention.h"

#include <atomic>
#include <cstring>
#include <memory>
#include <vector>

#include "parallel.h"

namespace bombus {
namespace {

constexpr int64_t kFewestSlots = 64;        // of a part
constexpr int64_t kPartsOfThread = 4;       // so that nobody waits long for the last one
constexpr int64_t kBytesOfThread = 1 << 17;  // less than this is done before another thread is awake
constexpr int64_t kRowsOfBytes = 4;         // query rows for which it is memory that takes the time
constexpr int64_t kMostRows = 128;          // of a part: what they need stays in the caches
constexpr int64_t kFewestTokens = 16;

// The slots that some token of a row of the batch sees; how many.
int64_t find_seen(const Attention& call, const Source& source, int64_t row, int32_t* out) {
  const int64_t slots = source.slots, tokens = call.tokens;
  const uint8_t* mask = source.mask + call.place(row, 0) * slots;
  int64_t count = 0;
  for (int64_t first = 0; first < slots; first += 8) {
    const int64_t some = slots - first < 8 ? slots - first : 8;
    uint64_t any = 0;
    for (int64_t token = 0; token < tokens; ++token) {
      uint64_t eight = 0;
      std::memcpy(&eight, mask + token * slots + first, static_cast<size_t>(some));
      any |= eight;
    }
    if (any == 0) continue;
    uint8_t bytes[8];
    std::memcpy(bytes, &any, 8);
    for (int64_t at = 0; at < some; ++at) {
      out[count] = static_cast<int32_t>(first + at);
      count += bytes[at] != 0;
    }
  }
  return count;
}

// The tokens of a call that is not cut further.
void attend_tokens(const Attention& call, Pool& pool) {
  const int64_t heads = call.batch * call.kv_heads, rows = call.rows();
  if (heads == 0) return;
  int64_t slots = 0, slot_bytes = 0;
  for (int64_t index = 0; index < call.count; ++index) {
    const Source& source = call.sources[index];
    slots += source.slots;
    const int64_t bytes = source.keys.row_bytes() + source.values.row_bytes();
    if (bytes > slot_bytes) slot_bytes = bytes;
  }
  // For each row of the batch and each source what is seen.
  std::unique_ptr<int32_t[]> lists(new int32_t[static_cast<size_t>(call.batch * slots + 1)]);
  std::vector<Seen> seen(static_cast<size_t>(call.batch * call.count));
  const auto find = [&](int64_t row) {
    int32_t* list = lists.get() + row * slots;
    for (int64_t index = 0; index < call.count; ++index) {
      seen[static_cast<size_t>(row * call.count + index)] = {list, find_seen(call, call.sources[index], row, list)};
      list += call.sources[index].slots;
    }
  };
  if (call.batch * call.tokens * slots > 1 << 16)
    parallel(pool, call.batch, find);
  else
    for (int64_t row = 0; row < call.batch; ++row) find(row);

  const int64_t threads = pool.threads() + 1;
  const int64_t wanted = threads == 1 ? 1 : (threads * kPartsOfThread + heads - 1) / heads;
  int64_t total = 0;
  std::vector<int64_t> first_part(static_cast<size_t>(heads + 1)), all(static_cast<size_t>(call.batch));
  for (int64_t head = 0; head < heads; ++head) {
    const int64_t row = head / call.kv_heads;
    if (head % call.kv_heads == 0)
      for (int64_t index = 0; index < call.count; ++index)
        all[static_cast<size_t>(row)] += seen[static_cast<size_t>(row * call.count + index)].count;
    const int64_t most = all[static_cast<size_t>(row)] / kFewestSlots;
    const int64_t parts = wanted < most ? wanted : most;
    first_part[static_cast<size_t>(head + 1)] = first_part[static_cast<size_t>(head)] + (parts < 1 ? 1 : parts);
    total += all[static_cast<size_t>(row)];
  }
  const PairedScores* const pairs = active().pairs ? active().pairs() : nullptr;
  const int64_t count = first_part.back();
  const int64_t floats = rows * (call.value_size + 2);
  std::unique_ptr<float[]> results(new float[static_cast<size_t>(count * floats)]);
  std::vector<Seen> ranges(static_cast<size_t>(count * call.count));
  std::vector<AttentionPart> parts(static_cast<size_t>(count));
  std::unique_ptr<std::atomic<int64_t>[]> left(new std::atomic<int64_t>[static_cast<size_t>(heads)]);
  for (int64_t head = 0; head < heads; ++head) {
    const int64_t row = head / call.kv_heads, begin = first_part[static_cast<size_t>(head)];
    const int64_t some = first_part[static_cast<size_t>(head + 1)] - begin;
    left[static_cast<size_t>(head)].store(some, std::memory_order_relaxed);
    for (int64_t part = 0; part < some; ++part) {
      // Its slots, among those of all sources in a row.
      const int64_t whole = all[static_cast<size_t>(row)];
      int64_t first = whole * part / some, last = whole * (part + 1) / some;
      Seen* range = ranges.data() + (begin + part) * call.count;
      for (int64_t index = 0; index < call.count; ++index) {
        const Seen& one = seen[static_cast<size_t>(row * call.count + index)];
        const int64_t from = first < one.count ? first : one.count, to = last < one.count ? last : one.count;
        range[index] = {one.slots + from, to - from};
        first -= from;
        last -= to;
      }
      float* result = results.get() + (begin + part) * floats;
      parts[static_cast<size_t>(begin + part)] = {&call, head, range, pairs, result, result + rows, result + 2 * rows};
    }
  }
  void (*const one_part)(const AttentionPart&) = between().attend;
  const auto run = [&](int64_t index) {
    const AttentionPart& part = parts[static_cast<size_t>(index)];
    one_part(part);
    // Whoever has the last part of a head puts them together.
    if (left[static_cast<size_t>(part.head)].fetch_sub(1, std::memory_order_acq_rel) != 1) return;
    const int64_t begin = first_part[static_cast<size_t>(part.head)];
    between().unite(call, parts.data() + begin, first_part[static_cast<size_t>(part.head + 1)] - begin);
  };
  if (total * slot_bytes * (1 + rows / kRowsOfBytes) < kBytesOfThread)
    for (int64_t index = 0; index < count; ++index) run(index);
  else
    parallel(pool, count, run);
}

}  // namespace

void attend(const Attention& call, Pool& pool) {
  if (call.heads == 0 || call.kv_heads == 0) return;
  const int64_t of_group = kMostRows / (call.heads / call.kv_heads), most = of_group < kFewestTokens ? kFewestTokens : of_group;
  // What only later tokens see is not read for earlier ones.
  const auto run = [&](int64_t index, Pool& threads) {
    Attention some = call;
    some.first_token = call.first_token + index * most;
    some.tokens = call.tokens - index * most < most ? call.tokens - index * most : most;
    attend_tokens(some, threads);
  };
  const int64_t count = (call.tokens + most - 1) / most;
  if (count < kPartsOfThread * (pool.threads() + 1)) {
    for (int64_t index = 0; index < count; ++index) run(index, pool);
    return;
  }
  // Each by one thread. The last ones, which often see most, begin.
  struct : Pool {
    int64_t threads() const override { return 0; }
    void schedule(std::function<void()>) override {}
  } nobody;
  parallel(pool, count, [&](int64_t index) { run(count - 1 - index, nobody); });
}

}  // namespace bombus
