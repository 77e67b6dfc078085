// What the programs that check kernels have in common, each of one source that includes this: a pool of threads,
// buffers, chance, and stored numbers in float64.
#pragma once

#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <limits>
#include <memory>
#include <mutex>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "kernels.h"

namespace bombus {

class Threads final : public Pool {
 public:
  explicit Threads(int count) {
    for (int thread = 0; thread < count; ++thread) workers_.emplace_back([this] { work(); });
  }
  ~Threads() override {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      ended_ = true;
    }
    woken_.notify_all();
    for (std::thread& worker : workers_) worker.join();
  }
  int64_t threads() const override { return static_cast<int64_t>(workers_.size()); }
  void schedule(std::function<void()> task) override {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      tasks_.push_back(std::move(task));
    }
    woken_.notify_one();
  }

 private:
  void work() {
    for (;;) {
      std::function<void()> task;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        woken_.wait(lock, [this] { return ended_ || !tasks_.empty(); });
        if (tasks_.empty()) return;
        task = std::move(tasks_.front());
        tasks_.pop_front();
      }
      task();
    }
  }

  std::mutex mutex_;
  std::condition_variable woken_;
  std::deque<std::function<void()>> tasks_;
  bool ended_ = false;
  std::vector<std::thread> workers_;
};

// Bytes that end where their memory ends, and begin `offset` bytes behind an aligned address.
class Bytes {
 public:
  explicit Bytes(size_t size, size_t offset) : size_(size), offset_(offset), memory_(std::malloc(offset + size)) {
    if (!memory_) std::abort();
  }
  ~Bytes() { std::free(memory_); }
  Bytes(const Bytes&) = delete;
  Bytes& operator=(const Bytes&) = delete;
  uint8_t* data() { return static_cast<uint8_t*>(memory_) + offset_; }
  const uint8_t* data() const { return static_cast<const uint8_t*>(memory_) + offset_; }
  size_t size() const { return size_; }
  template <class T>
  T get(int64_t index) const {
    T value;
    std::memcpy(&value, data() + static_cast<size_t>(index) * sizeof(T), sizeof(T));
    return value;
  }
  template <class T>
  void put(int64_t index, T value) {
    std::memcpy(data() + static_cast<size_t>(index) * sizeof(T), &value, sizeof(T));
  }

 private:
  size_t size_, offset_;
  void* memory_;
};

// What is drawn by chance.
struct Random {
  std::mt19937_64 bits;
  int64_t below(int64_t count) { return std::uniform_int_distribution<int64_t>(0, count - 1)(bits); }
  float normal() { return std::normal_distribution<float>()(bits); }
  std::unique_ptr<Bytes> buffer(int64_t size) {
    return std::unique_ptr<Bytes>(new Bytes(static_cast<size_t>(size), static_cast<size_t>(below(4)) * 4));
  }
};

// A floating code by the definition of its fields. With `kind` of infinity: 'f' as IEEE, 'n' only NaN at the very top.
inline double decode(uint32_t code, int exponent_bits, int fraction_bits, char kind) {
  const uint32_t fraction = code & ((1u << fraction_bits) - 1), exponent = code >> fraction_bits & ((1u << exponent_bits) - 1);
  const double sign = code >> (fraction_bits + exponent_bits) & 1 ? -1.0 : 1.0;
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const uint32_t top = (1u << exponent_bits) - 1;
  if (kind == 'f' && exponent == top) {
    if (fraction) return std::numeric_limits<double>::quiet_NaN();
    return sign * std::numeric_limits<double>::infinity();
  }
  if (kind == 'n' && exponent == top && fraction == (1u << fraction_bits) - 1) return std::numeric_limits<double>::quiet_NaN();
  if (exponent == 0) return sign * std::ldexp(fraction, 1 - bias - fraction_bits);
  return sign * std::ldexp(fraction + (1u << fraction_bits), static_cast<int>(exponent) - bias - fraction_bits);
}

inline double float_at(const Bytes& bytes, int64_t index) { return decode(bytes.get<uint32_t>(index), 8, 23, 'f'); }
inline double bfloat16_at(const Bytes& bytes, int64_t index) { return decode(bytes.get<uint16_t>(index), 8, 7, 'f'); }
inline double float16_at(const Bytes& bytes, int64_t index) { return decode(bytes.get<uint16_t>(index), 5, 10, 'f'); }

}  // namespace bombus
