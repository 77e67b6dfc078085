// Cache lines: memory that begins where one does, as vectors are read from (of two lines each takes twice as long), and how
// far ahead they are asked for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <vector>

namespace bombus {

constexpr int64_t kCacheLine = 64;
constexpr int64_t kAhead = 8192;  // bytes that are on their way where memory is read from front to back
constexpr int kOnce = 0;          // how long what is asked for is kept, for __builtin_prefetch: what is read once pushes out nothing

template <class T>
struct InLines {
  using value_type = T;
  InLines() = default;
  template <class U>
  InLines(const InLines<U>&) {}
  T* allocate(std::size_t count) { return static_cast<T*>(::operator new(count * sizeof(T), kLine)); }
  void deallocate(T* values, std::size_t) { ::operator delete(values, kLine); }
  template <class U>
  bool operator==(const InLines<U>&) const { return true; }
  template <class U>
  bool operator!=(const InLines<U>&) const { return false; }
  static constexpr std::align_val_t kLine{kCacheLine};
};

template <class T>
using Lines = std::vector<T, InLines<T>>;

}  // namespace bombus
