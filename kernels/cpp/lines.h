// Memory that begins where a cache line does, as vectors are read from: of two lines each takes twice as long.
#pragma once

#include <cstddef>
#include <new>
#include <vector>

namespace bombus {

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
  static constexpr std::align_val_t kLine{64};
};

template <class T>
using Lines = std::vector<T, InLines<T>>;

}  // namespace bombus
