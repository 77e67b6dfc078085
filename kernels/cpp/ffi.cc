// What XLA calls, and what Python calls through ctypes. kernels/native.py is the other side.
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "kernels.h"
#include "xla/ffi/api/ffi.h"
#include "xla_pool.h"

namespace bombus {
namespace {

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

Taken take_weight(Arguments& arguments, const Description& described, float factor, int64_t experts) {
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

ffi::Error wrong(const char* what) { return ffi::Error::InvalidArgument(std::string("bombus: ") + what); }

bool take_rows(const ffi::AnyBuffer& x, int64_t inputs, Rows* rows) {
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

// x (R, I) times weights (O, I) of any formats: for each (R, O) in float32.
ffi::Error product(ffi::ThreadPool threads, ffi::Span<const int64_t> numbers, ffi::Span<const float> factors,
                   ffi::AnyBuffer x, ffi::RemainingArgs rest, ffi::RemainingRets results) {
  if (numbers.size() != factors.size() * kNumbers || results.size() != factors.size()) return wrong("wrong attributes");
  std::vector<Product> products(factors.size());
  Arguments arguments(rest);
  for (size_t index = 0; index < factors.size(); ++index) {
    Description described;
    std::memcpy(&described, numbers.begin() + index * kNumbers, sizeof described);
    Product& one = products[index];
    if (!take_rows(x, described.inputs, &one.x)) return wrong("wrong rows");
    one.weight = take_weight(arguments, described, factors[index], 1).of(0);
    auto any = results.get<ffi::AnyBuffer>(index);
    if (!any.has_value() || (*any)->element_type() != ffi::F32 ||
        static_cast<int64_t>((*any)->element_count()) != one.x.rows * described.outputs)
      return wrong("wrong result");
    one.y = static_cast<float*>((*any)->untyped_data());
  }
  if (arguments.failed()) return wrong("a weight's arrays do not have the sizes of its format");
  XlaPool pool(&threads);
  active().multiply(products.data(), static_cast<int64_t>(products.size()), pool);
  return ffi::Error::Success();
}

// Blocks of M rows, (N, M, I), each times the weight of one expert of a stack: (N, M, O) in float32. Blocks from `used`
// on become zeros.
ffi::Error grouped(ffi::ThreadPool threads, ffi::Span<const int64_t> numbers, ffi::Span<const float> factors, int64_t experts,
                   ffi::AnyBuffer x, ffi::BufferR1<ffi::S32> expert, ffi::BufferR0<ffi::S32> used, ffi::RemainingArgs rest,
                   ffi::Result<ffi::BufferR3<ffi::F32>> y) {
  if (numbers.size() != kNumbers || factors.size() != 1) return wrong("wrong attributes");
  Description described;
  std::memcpy(&described, numbers.begin(), sizeof described);
  Arguments arguments(rest);
  const Taken stack = take_weight(arguments, described, factors[0], experts);
  if (arguments.failed()) return wrong("a stack's arrays do not have the sizes of its format");
  Rows all;
  const int64_t blocks = static_cast<int64_t>(expert.element_count());
  if (!take_rows(x, described.inputs, &all) || blocks == 0 || all.rows % blocks) return wrong("wrong rows");
  const int64_t rows = all.rows / blocks;
  if (static_cast<int64_t>(y->element_count()) != all.rows * described.outputs) return wrong("wrong result");
  const int64_t full = *used.typed_data() < blocks ? *used.typed_data() : blocks;
  const int64_t size = all.kind == Values::kF32 ? 4 : 2;
  std::vector<Product> products(static_cast<size_t>(full > 0 ? full : 0));
  for (int64_t block = 0; block < full; ++block) {
    int64_t index = expert.typed_data()[block];
    index = index < 0 ? 0 : index < experts ? index : experts - 1;
    Product& one = products[static_cast<size_t>(block)];
    one.weight = stack.of(index);
    one.x = all;
    one.x.rows = rows;
    one.x.values = static_cast<const uint8_t*>(all.values) + block * rows * all.inputs * size;
    one.y = y->typed_data() + block * rows * described.outputs;
  }
  const int64_t left = (blocks - (full > 0 ? full : 0)) * rows * described.outputs;
  std::memset(y->typed_data() + (all.rows * described.outputs - left), 0, static_cast<size_t>(left) * sizeof(float));
  XlaPool pool(&threads);
  active().multiply(products.data(), static_cast<int64_t>(products.size()), pool);
  return ffi::Error::Success();
}

// The sum of a buffer's 64-bit words: a plain read of it, which others are compared with.
ffi::Error read(ffi::ThreadPool threads, ffi::AnyBuffer bytes, ffi::Result<ffi::BufferR1<ffi::U32>> sum) {
  XlaPool pool(&threads);
  const uint64_t total =
      read_all(static_cast<const uint8_t*>(bytes.untyped_data()), static_cast<int64_t>(bytes.size_bytes()), pool);
  if (sum->element_count() != 2) return wrong("wrong result");
  std::memcpy(sum->typed_data(), &total, sizeof total);
  return ffi::Error::Success();
}

}  // namespace
}  // namespace bombus

namespace ffi = ::xla::ffi;

#define BOMBUS_EXPORT extern "C" __attribute__((visibility("default")))

BOMBUS_EXPORT XLA_FFI_Error* bombus_product(XLA_FFI_CallFrame*);
BOMBUS_EXPORT XLA_FFI_Error* bombus_grouped(XLA_FFI_CallFrame*);
BOMBUS_EXPORT XLA_FFI_Error* bombus_read(XLA_FFI_CallFrame*);

XLA_FFI_DEFINE_HANDLER_SYMBOL(bombus_product, bombus::product,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Attr<ffi::Span<const int64_t>>("numbers")
                                  .Attr<ffi::Span<const float>>("factors")
                                  .Arg<ffi::AnyBuffer>()
                                  .RemainingArgs()
                                  .RemainingRets());

XLA_FFI_DEFINE_HANDLER_SYMBOL(bombus_grouped, bombus::grouped,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Attr<ffi::Span<const int64_t>>("numbers")
                                  .Attr<ffi::Span<const float>>("factors")
                                  .Attr<int64_t>("experts")
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::BufferR1<ffi::S32>>()
                                  .Arg<ffi::BufferR0<ffi::S32>>()
                                  .RemainingArgs()
                                  .Ret<ffi::BufferR3<ffi::F32>>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(bombus_read, bombus::read,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::BufferR1<ffi::U32>>());

// For ctypes.
BOMBUS_EXPORT int bombus_choose(const char* name) { return bombus::choose(name); }
BOMBUS_EXPORT const char* bombus_active() { return bombus::active().name; }
