// How stored numbers are read one by one, and how the codes of a weight are cut into the blocks of a decoder.
//
// Decoders D take kCodes codes in kBytes bytes; avx2.cc describes them.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels.h"
#include "numbers.h"

namespace bombus {

// Unaligned loads of a type.
template <class T>
inline T read(const void* bytes, int64_t index) {
  T value;
  std::memcpy(&value, static_cast<const uint8_t*>(bytes) + index * static_cast<int64_t>(sizeof(T)), sizeof(T));
  return value;
}

inline float read_scale(const Matrix& weight, int64_t index) {
  switch (weight.scale_kind) {
    case Scales::kNone: return 1.0f;
    case Scales::kF32: return read<float>(weight.scale, index);
    case Scales::kBF16: return from_bits(static_cast<uint32_t>(read<uint16_t>(weight.scale, index)) << 16);
    case Scales::kF16: return half(read<uint16_t>(weight.scale, index));
    case Scales::kE8M0: return from_bits(static_cast<uint32_t>(weight.scale[index]) << 23);
    case Scales::kE4M3: return e4m3(weight.scale[index]);
  }
  return 0.0f;
}

// How a weight is cut into blocks of one decoder.
template <class D>
struct Layout {
  int64_t full, tail, blocks, padded;  // whole blocks, codes behind them, blocks in all, inputs of all blocks
  enum { kSegments, kLanes, kExpanded } mode;
  int64_t segment;  // blocks with one scale
  int64_t groups;   // scales of a block, where it has several

  explicit Layout(const Matrix& weight) {
    full = weight.inputs / D::kCodes;
    tail = weight.inputs % D::kCodes;
    blocks = full + (tail ? 1 : 0);
    padded = blocks * D::kCodes;
    const int64_t columns = weight.tile_columns;
    segment = 1;
    groups = 1;
    if (weight.scale_kind == Scales::kNone || columns >= weight.inputs) {
      mode = kSegments;
      segment = blocks > 0 ? blocks : 1;
    } else if (columns % D::kCodes == 0) {
      mode = kSegments;
      segment = columns / D::kCodes;
    } else if (D::kRun > 0 && D::kCodes % columns == 0 && columns % D::kRun == 0) {
      mode = kLanes;
      groups = D::kCodes / columns;
    } else {
      mode = kExpanded;
    }
  }
};

// What a row's last codes are copied to, with zeros behind them.
template <class D>
struct Tail {
  alignas(64) uint8_t bytes[D::kBytes];

  void copy(const uint8_t* row, const Layout<D>& layout, int64_t row_bytes) {
    const int64_t first = layout.full * D::kBytes;
    std::memset(bytes, 0, sizeof bytes);
    std::memcpy(bytes, row + first, static_cast<size_t>(row_bytes - first));
    // The upper half of a last byte belongs to no input, and what it holds must not count.
    if (D::kPacked && layout.tail % 2) bytes[row_bytes - first - 1] &= 15;
  }
};

}  // namespace bombus
