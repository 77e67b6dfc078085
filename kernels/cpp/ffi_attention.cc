// What XLA calls for attention. kernels/native_attention.py is the other side.
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "attention.h"
#include "kernels.h"
#include "xla/ffi/api/ffi.h"
#include "xla_pool.h"

namespace bombus {
namespace {

namespace ffi = ::xla::ffi;

ffi::Error wrong(const char* what) { return ffi::Error::InvalidArgument(std::string("bombus: attention: ") + what); }

bool kind_of(ffi::DataType type, Values* kind) {
  switch (type) {
    case ffi::F32: *kind = Values::kF32; return true;
    case ffi::BF16: *kind = Values::kBF16; return true;
    case ffi::F16: *kind = Values::kF16; return true;
    default: return false;
  }
}

bool codes_of(ffi::DataType type, Codes* kind) {
  switch (type) {
    case ffi::F32: *kind = Codes::kF32; return true;
    case ffi::BF16: *kind = Codes::kBF16; return true;
    case ffi::F16: *kind = Codes::kF16; return true;
    case ffi::F8E4M3FN: *kind = Codes::kE4M3; return true;
    case ffi::S8: *kind = Codes::kInt8; return true;
    case ffi::U8: *kind = Codes::kInt4; return true;
    default: return false;
  }
}

// The arguments of a call, taken one after the other; `right` becomes false where one is not as it must be.
struct Arguments {
  const ffi::RemainingArgs& arguments;
  size_t next = 0;
  bool right = true;

  // An array of this type, of these sizes.
  const void* take(ffi::DataType type, std::vector<int64_t> sizes) {
    auto found = arguments.get<ffi::AnyBuffer>(next++);
    if (!found.has_value() || found->element_type() != type) return fail();
    const auto given = found->dimensions();
    if (std::vector<int64_t>(given.begin(), given.end()) != sizes) return fail();
    return found->untyped_data();
  }

  // Keys or values of so many heads and slots; how many slots is found where it is -1. shape: whether there are scales,
  // 2 for scales of heads, and whether there are zero points.
  Vectors take_vectors(int64_t heads, int64_t* slots, const int64_t* shape) {
    Vectors vectors;
    auto codes = arguments.get<ffi::AnyBuffer>(next++);
    if (!codes.has_value() || codes->dimensions().size() != 3 || !codes_of(codes->element_type(), &vectors.kind)) {
      fail();
      return vectors;
    }
    const auto sizes = codes->dimensions();
    if (*slots < 0) *slots = sizes[1];
    if (sizes[0] != heads || sizes[1] != *slots) fail();
    vectors.codes = static_cast<const uint8_t*>(codes->untyped_data());
    vectors.size = vectors.kind == Codes::kInt4 ? sizes[2] * 2 : sizes[2];
    vectors.scale_of_head = shape[0] == 2;
    if (shape[0] == 2) vectors.scale = static_cast<const float*>(take(ffi::F32, {heads}));
    if (shape[0] == 1) vectors.scale = static_cast<const float*>(take(ffi::F32, {heads, *slots}));
    if (shape[1]) vectors.zero = static_cast<const float*>(take(ffi::F32, {heads, *slots}));
    return vectors;
  }

  const void* fail() {
    right = false;
    return nullptr;
  }
};

// q (B, T, N, H); then sinks (N,) where there are any; then of each source the mask (B, T, S), keys and values. shapes:
// four numbers of each source, which take_vectors takes for keys and for values.
ffi::Error attention(ffi::ThreadPool threads, ffi::Span<const int64_t> shapes, float scale, float softcap, bool has_sinks,
                     ffi::AnyBuffer q, ffi::RemainingArgs rest, ffi::Result<ffi::AnyBuffer> out) {
  Attention call;
  const auto sizes = q.dimensions(), made = out->dimensions();
  if (sizes.size() != 4 || made.size() != 4 || !kind_of(q.element_type(), &call.q_kind)) return wrong("wrong queries");
  if (!kind_of(out->element_type(), &call.out_kind) || call.out_kind == Values::kF16) return wrong("wrong type of result");
  for (size_t axis = 0; axis < 3; ++axis)
    if (sizes[axis] != made[axis]) return wrong("wrong shape of result");
  call.q = q.untyped_data();
  call.out = out->untyped_data();
  call.batch = sizes[0];
  call.all_tokens = call.tokens = sizes[1];
  call.heads = sizes[2];
  call.key_size = sizes[3];
  call.value_size = made[3];
  call.scale = scale;
  call.softcap = softcap;
  Arguments arguments{rest};
  if (has_sinks) call.sinks = static_cast<const float*>(arguments.take(ffi::F32, {call.heads}));
  std::vector<Source> sources(shapes.size() / 4);
  if (sources.empty() || call.batch < 1) return wrong("no sources");
  for (size_t index = 0; index < sources.size(); ++index) {
    Source& source = sources[index];
    // The mask says how many slots there are, and the first keys how many heads.
    auto mask = rest.get<ffi::AnyBuffer>(arguments.next);
    auto codes = rest.get<ffi::AnyBuffer>(arguments.next + 1);
    if (!mask.has_value() || !codes.has_value() || mask->dimensions().size() != 3 || codes->dimensions().size() != 3)
      return wrong("missing arrays");
    source.slots = mask->dimensions()[2];
    const int64_t heads = codes->dimensions()[0];
    source.mask = static_cast<const uint8_t*>(arguments.take(ffi::PRED, {call.batch, call.tokens, source.slots}));
    source.keys = arguments.take_vectors(heads, &source.slots, shapes.begin() + 4 * index);
    source.values = arguments.take_vectors(heads, &source.slots, shapes.begin() + 4 * index + 2);
    if (index > 0 && heads != call.batch * call.kv_heads) return wrong("sources differ in heads");
    call.kv_heads = heads / call.batch;
    if (call.kv_heads < 1 || heads % call.batch || call.heads % call.kv_heads) return wrong("wrong number of heads");
    if (source.keys.size != call.key_size || source.values.size != call.value_size) return wrong("wrong size of heads");
  }
  if (!arguments.right || arguments.next != rest.size()) return wrong("wrong arrays");
  call.sources = sources.data();
  call.count = static_cast<int64_t>(sources.size());
  XlaPool pool(&threads);
  attend(call, pool);
  return ffi::Error::Success();
}

// Rows (B, T, K, ...), as one row of values, written over those of a buffer (B * K, S, ...) from slot `first` on, where the
// result is the buffer itself.
ffi::Error write(int64_t kv_heads, ffi::AnyBuffer before, ffi::AnyBuffer rows, ffi::BufferR0<ffi::S32> first,
                 ffi::Result<ffi::AnyBuffer> after) {
  const auto sizes = before.dimensions();
  if (before.untyped_data() != after->untyped_data()) return wrong("a cache is not written in place");
  if (rows.size_bytes() == 0) return ffi::Error::Success();
  const int64_t all = static_cast<int64_t>(before.size_bytes()), some = static_cast<int64_t>(rows.size_bytes());
  if (sizes.size() < 2 || all == 0 || before.element_type() != rows.element_type()) return wrong("wrong rows to write");
  const int64_t heads = sizes[0], slots = sizes[1], bytes = all / (heads * slots), tokens = some / (heads * bytes);
  if (tokens > slots || tokens * heads * bytes != some || kv_heads < 1 || heads % kv_heads)
    return wrong("wrong number of rows to write");
  int64_t slot = *first.typed_data();
  slot = slot > slots - tokens ? slots - tokens : slot < 0 ? 0 : slot;
  for (int64_t head = 0; head < heads; ++head) {
    auto* to = static_cast<uint8_t*>(after->untyped_data()) + (head * slots + slot) * bytes;
    const auto* from = static_cast<const uint8_t*>(rows.untyped_data()) +
                       (head / kv_heads * tokens * kv_heads + head % kv_heads) * bytes;
    for (int64_t token = 0; token < tokens; ++token, to += bytes, from += kv_heads * bytes)
      std::memcpy(to, from, static_cast<size_t>(bytes));
  }
  return ffi::Error::Success();
}

}  // namespace
}  // namespace bombus

namespace ffi = ::xla::ffi;

extern "C" __attribute__((visibility("default"))) XLA_FFI_Error* bombus_attention(XLA_FFI_CallFrame*);
extern "C" __attribute__((visibility("default"))) XLA_FFI_Error* bombus_write(XLA_FFI_CallFrame*);

XLA_FFI_DEFINE_HANDLER_SYMBOL(bombus_attention, bombus::attention,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Attr<ffi::Span<const int64_t>>("shapes")
                                  .Attr<float>("scale")
                                  .Attr<float>("softcap")
                                  .Attr<bool>("sinks")
                                  .Arg<ffi::AnyBuffer>()
                                  .RemainingArgs()
                                  .Ret<ffi::AnyBuffer>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(bombus_write, bombus::write,
                              ffi::Ffi::Bind()
                                  .Attr<int64_t>("heads")
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::BufferR0<ffi::S32>>()
                                  .Ret<ffi::AnyBuffer>());
