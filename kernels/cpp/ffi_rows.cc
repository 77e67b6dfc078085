// What XLA calls between products. kernels/native_rows.py is the other side.
#include <cstdint>

#include "ffi_arguments.h"
#include "kernels.h"
#include "rows.h"
#include "xla_pool.h"

namespace bombus {
namespace {

// x (..., D) and scale (D,).
ffi::Error norm(ffi::ThreadPool threads, float epsilon, float offset, ffi::AnyBuffer x, ffi::AnyBuffer scale,
                ffi::Result<ffi::AnyBuffer> out) {
  Norm call;
  if (!kind_of(x.element_type(), &call.x_kind) || !kind_of(scale.element_type(), &call.scale_kind) ||
      !kind_of(out->element_type(), &call.out_kind))
    return wrong("norm: wrong types");
  const auto sizes = x.dimensions();
  call.size = static_cast<int64_t>(scale.element_count());
  const int64_t count = static_cast<int64_t>(x.element_count());
  if (sizes.size() < 1 || sizes[sizes.size() - 1] != call.size || static_cast<int64_t>(out->element_count()) != count)
    return wrong("norm: wrong shapes");
  call.rows = call.size ? count / call.size : 0;
  call.x = x.untyped_data();
  call.scale = scale.untyped_data();
  call.out = out->untyped_data();
  call.epsilon = epsilon;
  call.offset = offset;
  XlaPool pool(&threads);
  rms_norm(call, pool);
  return ffi::Error::Success();
}

// cos (B, T, 1, 1, R) and sin (B, T, 1, 2, R), then heads (B, T, N, H), behind each of them its scale (H,) where it is
// normed: its epsilon is not negative then.
ffi::Error turn(ffi::ThreadPool threads, bool interleaved, ffi::Span<const float> epsilons, ffi::Span<const float> offsets,
                ffi::Buffer<ffi::F32> cos, ffi::Buffer<ffi::F32> sin, ffi::RemainingArgs rest, ffi::RemainingRets results) {
  if (epsilons.size() != results.size() || offsets.size() != results.size()) return wrong("rotation: wrong attributes");
  XlaPool pool(&threads);
  size_t next = 0;
  for (size_t index = 0; index < results.size(); ++index) {
    Rotation call;
    const auto x = rest.get<ffi::AnyBuffer>(next++);
    auto out = results.get<ffi::AnyBuffer>(index);
    if (!x.has_value() || !out.has_value() || x->dimensions().size() != 4 || cos.dimensions().size() != 5 ||
        (*out)->element_type() != x->element_type() || !kind_of(x->element_type(), &call.kind))
      return wrong("rotation: wrong arrays");
    const auto sizes = x->dimensions();
    call.tokens = sizes[0] * sizes[1];
    call.heads = sizes[2];
    call.size = sizes[3];
    call.pairs = cos.dimensions()[4];
    const int64_t angles = call.tokens * call.pairs;
    if (2 * call.pairs > call.size || static_cast<int64_t>(cos.element_count()) != angles ||
        static_cast<int64_t>(sin.element_count()) != 2 * angles || (*out)->element_count() != x->element_count())
      return wrong("rotation: wrong shapes");
    call.epsilon = epsilons.begin()[index];
    call.offset = offsets.begin()[index];
    if (call.epsilon >= 0.0f) {
      const auto scale = rest.get<ffi::AnyBuffer>(next++);
      if (!scale.has_value() || static_cast<int64_t>(scale->element_count()) != call.size ||
          !kind_of(scale->element_type(), &call.scale_kind))
        return wrong("rotation: wrong scale");
      call.scale = scale->untyped_data();
    }
    call.x = x->untyped_data();
    call.cos = cos.typed_data();
    call.sin = sin.typed_data();
    call.out = (*out)->untyped_data();
    call.interleaved = interleaved;
    rotate(call, pool);
  }
  return next == rest.size() ? ffi::Error::Success() : wrong("rotation: too many arrays");
}

}  // namespace
}  // namespace bombus

namespace ffi = ::xla::ffi;

extern "C" __attribute__((visibility("default"))) XLA_FFI_Error* bombus_norm(XLA_FFI_CallFrame*);
extern "C" __attribute__((visibility("default"))) XLA_FFI_Error* bombus_rotate(XLA_FFI_CallFrame*);

XLA_FFI_DEFINE_HANDLER_SYMBOL(bombus_norm, bombus::norm,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Attr<float>("epsilon")
                                  .Attr<float>("offset")
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(bombus_rotate, bombus::turn,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Attr<bool>("interleaved")
                                  .Attr<ffi::Span<const float>>("epsilons")
                                  .Attr<ffi::Span<const float>>("offsets")
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .RemainingArgs()
                                  .RemainingRets());
