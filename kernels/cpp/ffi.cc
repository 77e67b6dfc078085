// What XLA calls, and what Python calls through ctypes. kernels/native.py is the other side.
#include <chrono>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

#include "ffi_arguments.h"
#include "kernels.h"
#include "rows.h"
#include "xla_pool.h"

namespace bombus {
namespace {

// x (R, I) times weights (O, I) of any formats: for each (R, O) in float32.
//
// norm: nothing, or epsilon and offset of the norm of x before, whose scale (I,) then comes first and whose result does,
// too. after: nothing, or what Finish takes behind the products: the activation; whether the second is multiplied with the
// first; whether there is a residual; the type of float32 (0) or bfloat16 (1) that each is rounded to; for each whether it
// has a bias. Biases and the residual then come last, and so do the results of all that.
ffi::Error product(ffi::ThreadPool threads, ffi::Span<const int64_t> numbers, ffi::Span<const float> factors,
                   ffi::Span<const float> norm, ffi::Span<const int64_t> after, ffi::AnyBuffer x, ffi::RemainingArgs rest,
                   ffi::RemainingRets results) {
  const size_t count = factors.size();
  if (numbers.size() != count * kNumbers || (norm.size() != 0 && norm.size() != 2)) return wrong("wrong attributes");
  std::vector<Description> described(count);
  std::memcpy(described.data(), numbers.begin(), count * sizeof(Description));
  XlaPool pool(&threads);
  Arguments arguments(rest);
  size_t made = 0;  // results so far
  Rows rows;
  if (!take_rows(x, count ? described[0].inputs : 0, &rows)) return wrong("wrong rows");
  if (norm.size()) {
    Norm call;
    call.rows = rows.rows, call.size = rows.inputs;
    call.x = rows.values, call.x_kind = rows.kind;
    call.scale = take_values(rest, arguments.skip(), call.size, &call.scale_kind);
    call.out = give_values(results, made++, call.rows * call.size, &call.out_kind);
    if (!call.scale || !call.out || rows.kind == Values::kF16) return wrong("wrong norm");
    call.epsilon = norm.begin()[0], call.offset = norm.begin()[1];
    rms_norm(call, pool);
    rows.values = call.out, rows.kind = call.out_kind;
  }
  std::vector<Product> products(count);
  for (size_t index = 0; index < count; ++index) {
    Product& one = products[index];
    one.x = rows;
    if (described[index].inputs != rows.inputs) return wrong("wrong rows");
    one.weight = take_weight(arguments, described[index], factors[index], 1).of(0);
    Values kind;
    one.y = static_cast<float*>(give_values(results, made++, rows.rows * one.weight.outputs, &kind));
    if (!one.y || kind != Values::kF32) return wrong("wrong result");
  }
  if (arguments.failed()) return wrong("a weight's arrays do not have the sizes of its format");
  std::vector<Finish> finishes(after.size() ? count : 0);
  if (after.size()) {
    const auto activation = static_cast<Activation>(after.begin()[0]);
    if (after.size() != 3 + 2 * count || activation > Activation::kGeluTanh) return wrong("wrong attributes");
    const int64_t *types = after.begin() + 3, *biases = types + count;
    const bool together = after.begin()[1] != 0;
    if (together && (count != 2 || products[0].weight.outputs != products[1].weight.outputs)) return wrong("wrong pair");
    for (size_t index = 0; index < count; ++index) {
      Product& one = products[index];
      Finish& finish = finishes[index];
      finish.one.y = one.y;
      if (biases[index]) {
        finish.one.bias = take_values(rest, arguments.skip(), one.weight.outputs, &finish.one.bias_kind);
        if (!finish.one.bias) return wrong("wrong bias");
      }
      finish.activation = activation;
      finish.rows = rows.rows, finish.size = one.weight.outputs;
      finish.out_kind = types[index] ? Values::kBF16 : Values::kF32;
      one.finish = &finish;
    }
    if (together) {
      finishes[0].other = finishes[1].one;
      products[1].finish = nullptr;
      products[1].with_last = true;
      finishes.pop_back();
    }
    const size_t residual = after.begin()[2] ? arguments.skip() : rest.size();
    for (Finish& finish : finishes) {
      const int64_t values = finish.rows * finish.size;
      if (residual < rest.size() && !(finish.residual = take_values(rest, residual, values, &finish.residual_kind)))
        return wrong("wrong residual");
      Values kind;
      finish.out = give_values(results, made++, values, &kind);
      if (!finish.out || kind != (finish.residual ? finish.residual_kind : finish.out_kind)) return wrong("wrong result");
    }
  }
  if (made != results.size() || arguments.skip() != rest.size()) return wrong("wrong arrays");
  active().multiply(products.data(), static_cast<int64_t>(count), pool);
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

// Gives back what it is given, and has the program go on with one of the pool's threads.
//
// Whoever starts a program may execute all of it, and is one thread more than there are cores beside those of the pool, which
// wait for what it leaves to them. Where the pool has one, nothing is left to it.
ffi::Future move(ffi::ThreadPool threads, ffi::AnyBuffer x, ffi::Result<ffi::AnyBuffer> out) {
  thread_local bool of_pool = false;
  ffi::Promise promise;
  ffi::Future future(promise);
  if (out->untyped_data() != x.untyped_data()) std::memcpy(out->untyped_data(), x.untyped_data(), x.size_bytes());
  if (of_pool || threads.num_threads() < 2) {
    promise.SetAvailable();
  } else {
    threads.Schedule([promise]() mutable {
      of_pool = true;
      // Until XLA waits for it: what is there when this call returns, the caller goes on with.
      std::this_thread::sleep_for(std::chrono::microseconds(5));
      promise.SetAvailable();
    });
  }
  return future;
}

}  // namespace
}  // namespace bombus

namespace ffi = ::xla::ffi;

#define BOMBUS_EXPORT extern "C" __attribute__((visibility("default")))

BOMBUS_EXPORT XLA_FFI_Error* bombus_product(XLA_FFI_CallFrame*);
BOMBUS_EXPORT XLA_FFI_Error* bombus_read(XLA_FFI_CallFrame*);
BOMBUS_EXPORT XLA_FFI_Error* bombus_move(XLA_FFI_CallFrame*);

XLA_FFI_DEFINE_HANDLER_SYMBOL(bombus_product, bombus::product,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Attr<ffi::Span<const int64_t>>("numbers")
                                  .Attr<ffi::Span<const float>>("factors")
                                  .Attr<ffi::Span<const float>>("norm")
                                  .Attr<ffi::Span<const int64_t>>("after")
                                  .Arg<ffi::AnyBuffer>()
                                  .RemainingArgs()
                                  .RemainingRets());

XLA_FFI_DEFINE_HANDLER_SYMBOL(bombus_read, bombus::read,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::BufferR1<ffi::U32>>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(bombus_move, bombus::move,
                              ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<ffi::AnyBuffer>().Ret<ffi::AnyBuffer>());

// For ctypes.
BOMBUS_EXPORT int bombus_choose(const char* name) { return bombus::choose(name); }
BOMBUS_EXPORT const char* bombus_active() { return bombus::active().name; }
