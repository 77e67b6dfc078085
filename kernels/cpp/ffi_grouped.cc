// What XLA calls for experts. kernels/native.py is the other side.
#include <cstdint>
#include <cstring>
#include <vector>

#include "ffi_arguments.h"
#include "kernels.h"
#include "xla_pool.h"

namespace bombus {
namespace {

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

}  // namespace
}  // namespace bombus

namespace ffi = ::xla::ffi;

extern "C" __attribute__((visibility("default"))) XLA_FFI_Error* bombus_grouped(XLA_FFI_CallFrame*);

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
