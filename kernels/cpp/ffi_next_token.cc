// What XLA calls for the next token. generation/next_token.py is the other side.
#include <cstdint>
#include <type_traits>

#include "ffi_arguments.h"
#include "next_token.h"
#include "xla_pool.h"

namespace bombus {
namespace {

using Ints = ffi::BufferR1<ffi::S32>;

// logits (R, V), step (R,), what is forced, sequences, and ids that stop; then the rest of Settings, and unless
// prompt_slots is negative a history: tokens (R, slots), which of them are real, and how many are used.
ffi::Error next(ffi::ThreadPool threads, int64_t prompt_slots, ffi::BufferR2<ffi::F32> logits, Ints step, Ints forced,
                ffi::BufferR2<ffi::S32> sequences, Ints stop, ffi::RemainingArgs rest, ffi::Result<Ints> out) {
  NextToken call;
  call.rows = logits.dimensions()[0];
  call.vocabulary = logits.dimensions()[1];
  const size_t rows = static_cast<size_t>(call.rows);
  if (call.vocabulary < 1 || step.element_count() != rows || out->element_count() != rows || sequences.dimensions()[1] < 1 ||
      forced.element_count() < 1)
    return wrong("next token: wrong shapes");
  call.logits = logits.typed_data();
  call.step = step.typed_data();
  call.out = out->typed_data();
  Settings& settings = call.settings;
  settings.forced = forced.typed_data();
  settings.steps = static_cast<int64_t>(forced.element_count());
  settings.sequences = sequences.typed_data();
  settings.sequence_count = sequences.dimensions()[0];
  settings.sequence_length = sequences.dimensions()[1];
  settings.stop = stop.typed_data();
  settings.stop_count = static_cast<int64_t>(stop.element_count());
  Arguments arguments(rest);
  const auto take = [&](auto& of, int64_t count) {
    using Pointer = std::remove_reference_t<decltype(of)>;
    of = reinterpret_cast<Pointer>(arguments.take(static_cast<size_t>(count) * sizeof *of));
  };
  for (const float** of : {&settings.temperature, &settings.top_p, &settings.min_p, &settings.typical_p, &settings.epsilon,
                           &settings.eta, &settings.repetition, &settings.presence, &settings.frequency})
    take(*of, call.rows);
  for (const int32_t** of : {&settings.top_k, &settings.ngram, &settings.min_new_tokens, &settings.min_length})
    take(*of, call.rows);
  take(settings.seed, call.rows);
  take(settings.biased, 1);
  take(settings.bias, call.vocabulary);
  take(settings.first_bias, call.vocabulary);
  take(settings.forced_bos, 1);
  take(settings.sequence_bias, settings.sequence_count);
  if (prompt_slots >= 0) {
    const auto tokens = rest.get<ffi::BufferR2<ffi::S32>>(rest.size() - 3);
    if (!tokens.has_value()) return wrong("next token: wrong history");
    call.slots = tokens->dimensions()[1];
    call.prompt_slots = prompt_slots;
    const int32_t* length = nullptr;
    take(call.tokens, call.rows * call.slots);
    take(call.real, call.rows * call.slots);
    take(length, 1);
    if (arguments.failed() || *length < prompt_slots || *length > call.slots) return wrong("next token: wrong history");
    call.length = *length;
  }
  if (arguments.failed()) return wrong("next token: wrong arrays");
  XlaPool pool(&threads);
  next_tokens(call, pool);
  return ffi::Error::Success();
}

}  // namespace
}  // namespace bombus

namespace ffi = ::xla::ffi;

extern "C" __attribute__((visibility("default"))) XLA_FFI_Error* bombus_next_token(XLA_FFI_CallFrame*);

XLA_FFI_DEFINE_HANDLER_SYMBOL(bombus_next_token, bombus::next,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Attr<int64_t>("prompt_slots")
                                  .Arg<ffi::BufferR2<ffi::F32>>()
                                  .Arg<bombus::Ints>()
                                  .Arg<bombus::Ints>()
                                  .Arg<ffi::BufferR2<ffi::S32>>()
                                  .Arg<bombus::Ints>()
                                  .RemainingArgs()
                                  .Ret<bombus::Ints>());
