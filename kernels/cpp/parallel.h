// A loop whose parts run on the threads of a pool and on the thread that calls.
#pragma once

#include <atomic>
#include <memory>
#include <thread>
#include <utility>

#include "kernels.h"

namespace bombus {

// body(part) for every part below `parts`, in any order; returns when all have run.
//
// The caller works too and never waits for a task that has not begun: it may itself be on a thread of the pool, all of
// whose other threads wait in the same way. A task that begins late finds no part left and touches nothing of the call.
template <class Body>
void parallel(Pool& pool, int64_t parts, const Body& body) {
  const int64_t helpers = pool.threads() < parts - 1 ? pool.threads() : parts - 1;
  if (helpers < 1) {
    for (int64_t part = 0; part < parts; ++part) body(part);
    return;
  }
  struct State {
    std::atomic<int64_t> next{0};
    std::atomic<int64_t> done{0};
    int64_t parts = 0;
    const Body* body = nullptr;

    void work() {
      int64_t finished = 0;
      for (int64_t part; (part = next.fetch_add(1, std::memory_order_relaxed)) < parts; ++finished) (*body)(part);
      if (finished) done.fetch_add(finished, std::memory_order_release);
    }
  };
  auto state = std::make_shared<State>();
  state->parts = parts;
  state->body = &body;
  for (int64_t helper = 0; helper < helpers; ++helper) pool.schedule([state] { state->work(); });
  state->work();
  for (int64_t spins = 0; state->done.load(std::memory_order_acquire) < parts; ++spins) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
    // Whoever has the last part may be waiting for this core.
    if (spins > 10000) std::this_thread::yield();
  }
}

}  // namespace bombus
