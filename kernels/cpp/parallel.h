// A loop whose parts run on the threads of a pool and on the thread that calls.
#pragma once

#include <atomic>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "ahead.h"
#include "kernels.h"

namespace bombus {

// Where the range of parts of one of some threads begins.
inline int64_t first_part(int64_t parts, int64_t thread, int64_t threads) { return parts * thread / threads; }

// body(part) for every part below `parts`, in any order; returns when all have run.
//
// Each thread has a range of parts that follow each other, as what it has asked the memory for ahead of time is of the part
// that comes next; when there are none left it takes the next one of another's range. The caller works too and never waits
// for a task that has not begun: it may itself be on a thread of the pool, all of whose other threads wait in the same way. A
// task that begins late finds no part left and touches nothing of the call. Whoever has helped then fetches what is read next.
template <class Body>
void parallel(Pool& pool, int64_t parts, const Body& body) {
  const int64_t helpers = pool.threads() < parts - 1 ? pool.threads() : parts - 1;
  if (helpers < 1) {
    for (int64_t part = 0; part < parts; ++part) body(part);
    return;
  }
  struct alignas(64) Range {
    std::atomic<int64_t> next{0};
    int64_t end = 0;
  };
  struct State {
    std::vector<Range> ranges;
    std::atomic<int64_t> done{0};
    const Body* body = nullptr;

    explicit State(int64_t threads) : ranges(static_cast<size_t>(threads)) {}

    void work(size_t own) {
      int64_t finished = 0;
      for (size_t away = 0; away < ranges.size(); ++away) {
        Range& range = ranges[(own + away) % ranges.size()];
        for (int64_t part; (part = range.next.fetch_add(1, std::memory_order_relaxed)) < range.end; ++finished) (*body)(part);
      }
      if (finished) done.fetch_add(finished, std::memory_order_release);
    }
  };
  loops.fetch_add(1, std::memory_order_relaxed);
  auto state = std::make_shared<State>(helpers + 1);
  state->body = &body;
  for (int64_t thread = 0; thread <= helpers; ++thread) {
    Range& range = state->ranges[static_cast<size_t>(thread)];
    range.next.store(first_part(parts, thread, helpers + 1), std::memory_order_relaxed);
    range.end = first_part(parts, thread + 1, helpers + 1);
  }
  for (int64_t helper = 1; helper <= helpers; ++helper)
    pool.schedule([state, helper] {
      state->work(static_cast<size_t>(helper));
      fetch_next(helper);
    });
  state->work(0);
  for (int64_t spins = 0; state->done.load(std::memory_order_acquire) < parts; ++spins) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
    // Whoever has the last part may be waiting for this core.
    if (spins > 10000) std::this_thread::yield();
  }
}

}  // namespace bombus
