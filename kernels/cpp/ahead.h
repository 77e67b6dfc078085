// What is read next, fetched by threads that have nothing else to do.
//
// A step of a model reads the same weights in the same order every time. Between two products of few rows the memory has
// nothing to do, while one thread does what lies between them and the others wait.
#pragma once

#include <atomic>
#include <cstdint>

namespace bombus {

constexpr int64_t kFetchers = 8;             // threads that fetch
constexpr int64_t kFetchedBytes = 1 << 18;  // by each of them; they stay in an L2 cache

// Bytes that a thread reads first.
struct FirstBytes {
  const uint8_t* at = nullptr;
  int64_t count = 0;
};

// A call begins, which `key` stands for, and whose threads read these.
void begins(const void* key, const FirstBytes* threads);

// What a thread will read first of the call that followed this one the last two times; nothing where there is none.
FirstBytes read_next(int64_t thread);

// Fetches that, as far as it is not done, until another loop begins.
void fetch_next(int64_t thread);

inline std::atomic<uint64_t> loops{0};  // that have begun

}  // namespace bombus
