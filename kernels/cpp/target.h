// Compiling some functions for more than the oldest processor. What lies between BEGIN and END is compiled for the
// features named; headers come before it, so that what the whole library shares stays runnable everywhere.
//
// With BOMBUS_EMULATED the same sources are compiled for any processor, and a test gives the instructions' meaning.
#pragma once

#if defined(__x86_64__) || defined(_M_X64) || defined(BOMBUS_EMULATED)
#define BOMBUS_X86 1
#endif

// Whether the compiler knows these.
#if defined(BOMBUS_EMULATED)
#define BOMBUS_BF16 1
#define BOMBUS_AMX 1
#elif defined(BOMBUS_X86) && __has_include(<avx512bf16intrin.h>)
#define BOMBUS_BF16 1
#if __has_include(<amxbf16intrin.h>) || (defined(__clang__) && __has_include(<amxintrin.h>))
#define BOMBUS_AMX 1
#endif
#endif

#if defined(__GNUC__) && !defined(__clang__)
// GCC's own headers make a register of any content by setting it to itself (its bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#define BOMBUS_PRAGMA(text) _Pragma(#text)
#if defined(BOMBUS_EMULATED)
#define BOMBUS_INTRINSICS "emulated.h"
#define BOMBUS_RUNS(feature) true
#define BOMBUS_TARGET_BEGIN(features)
#define BOMBUS_TARGET_END
#else
#define BOMBUS_INTRINSICS <immintrin.h>
#define BOMBUS_RUNS(feature) __builtin_cpu_supports(feature)
#if defined(__clang__)
#define BOMBUS_TARGET_BEGIN(features) \
  BOMBUS_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define BOMBUS_TARGET_END _Pragma("clang attribute pop")
#else
#define BOMBUS_TARGET_BEGIN(features) _Pragma("GCC push_options") BOMBUS_PRAGMA(GCC target(features))
#define BOMBUS_TARGET_END _Pragma("GCC pop_options")
#endif
#endif
