// What products take of a call: weights by the numbers that describe them, rows of x, and arrays of values.
#pragma once

#include <cstdint>
#include <string>

#include "kernels.h"
#include "xla/ffi/api/ffi.h"

namespace bombus {

namespace ffi = ::xla::ffi;

// The numbers that native.py gives for each weight, in this order.
struct Description {
  int64_t kind, scale_kind, has_zero, outputs, inputs, tile_rows, tile_columns, grid_columns, has_global;
};
constexpr size_t kNumbers = sizeof(Description) / sizeof(int64_t);

// The arguments of a call, taken one after the other.
class Arguments {
 public:
  Arguments(const ffi::RemainingArgs& arguments) : arguments_(arguments) {}

  // The bytes of the next one; null, and an error kept, unless it has just so many.
  const uint8_t* take(size_t bytes) {
    auto found = arguments_.get<ffi::AnyBuffer>(next_++);
    if (!found.has_value() || found->size_bytes() != bytes) {
      failed_ = true;
      return nullptr;
    }
    return static_cast<const uint8_t*>(found->untyped_data());
  }

  // The place of the next one, which is taken otherwise.
  size_t skip() { return next_++; }

  bool failed() const { return failed_; }

 private:
  const ffi::RemainingArgs& arguments_;
  size_t next_ = 0;
  bool failed_ = false;
};

// A weight, or a stack of them, and the bytes from one to the next.
struct Taken {
  Matrix weight;
  int64_t codes_bytes = 0, scale_bytes = 0, grid = 0;
  const float* global = nullptr;

  Matrix of(int64_t expert) const {
    Matrix one = weight;
    one.codes += expert * codes_bytes;
    if (one.scale) one.scale += expert * scale_bytes;
    if (one.zero) one.zero += expert * grid;
    if (global) one.factor /= global[expert];
    return one;
  }
};

inline Taken take_weight(Arguments& arguments, const Description& described, float factor, int64_t experts) {
  Taken taken;
  Matrix& weight = taken.weight;
  weight.kind = static_cast<Codes>(described.kind);
  weight.scale_kind = static_cast<Scales>(described.scale_kind);
  weight.outputs = described.outputs;
  weight.inputs = described.inputs;
  weight.tile_rows = described.tile_rows;
  weight.tile_columns = described.tile_columns;
  weight.grid_columns = described.grid_columns;
  weight.factor = factor;
  taken.codes_bytes = weight.outputs * weight.row_bytes();
  taken.grid = (weight.outputs + weight.tile_rows - 1) / weight.tile_rows * weight.grid_columns;
  taken.scale_bytes = taken.grid * bytes_of(weight.scale_kind);
  weight.codes = arguments.take(static_cast<size_t>(experts * taken.codes_bytes));
  if (weight.scale_kind != Scales::kNone) weight.scale = arguments.take(static_cast<size_t>(experts * taken.scale_bytes));
  if (described.has_zero) weight.zero = arguments.take(static_cast<size_t>(experts * taken.grid));
  if (described.has_global)
    taken.global = reinterpret_cast<const float*>(arguments.take(static_cast<size_t>(experts) * sizeof(float)));
  return taken;
}

inline ffi::Error wrong(const char* what) { return ffi::Error::InvalidArgument(std::string("bombus: ") + what); }

inline bool kind_of(ffi::DataType type, Values* kind) {
  *kind = type == ffi::F32 ? Values::kF32 : Values::kBF16;
  return type == ffi::F32 || type == ffi::BF16;
}

inline bool take_rows(const ffi::AnyBuffer& x, int64_t inputs, Rows* rows) {
  switch (x.element_type()) {
    case ffi::F32: rows->kind = Values::kF32; break;
    case ffi::BF16: rows->kind = Values::kBF16; break;
    case ffi::F16: rows->kind = Values::kF16; break;
    default: return false;
  }
  rows->values = x.untyped_data();
  rows->inputs = inputs;
  rows->rows = inputs ? static_cast<int64_t>(x.element_count()) / inputs : 0;
  return inputs == 0 || rows->rows * inputs == static_cast<int64_t>(x.element_count());
}

// An array of float32 or bfloat16 with so many values; null where it is none.
inline const void* take_values(const ffi::RemainingArgs& rest, size_t index, int64_t count, Values* kind) {
  const auto found = rest.get<ffi::AnyBuffer>(index);
  if (!found.has_value() || static_cast<int64_t>(found->element_count()) != count) return nullptr;
  return kind_of(found->element_type(), kind) ? found->untyped_data() : nullptr;
}

// The next result, of so many values, in the type that it has.
inline void* give_values(ffi::RemainingRets& results, size_t index, int64_t count, Values* kind) {
  auto found = results.get<ffi::AnyBuffer>(index);
  if (!found.has_value() || static_cast<int64_t>((*found)->element_count()) != count) return nullptr;
  return kind_of((*found)->element_type(), kind) ? (*found)->untyped_data() : nullptr;
}

}  // namespace bombus
