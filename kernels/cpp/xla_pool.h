// XLA's own threads.
#pragma once

#include <cstdint>
#include <functional>
#include <utility>

#include "kernels.h"
#include "xla/ffi/api/ffi.h"

namespace bombus {

class XlaPool final : public Pool {
 public:
  explicit XlaPool(::xla::ffi::ThreadPool* pool) : pool_(pool), threads_(pool->num_threads()) {}
  // The caller is one of as many threads as there are cores, or waits beside them for this call.
  int64_t threads() const override { return threads_ - 1; }
  void schedule(std::function<void()> task) override { pool_->Schedule(std::move(task)); }

 private:
  ::xla::ffi::ThreadPool* pool_;
  int64_t threads_;
};

}  // namespace bombus
