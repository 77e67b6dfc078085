// What the instruction sets have in common: how a stored weight is described, and the table of kernels that each has.
//
// Shapes: R rows of x, I inputs, O outputs. A weight is (O, I), as in the checkpoint; see policies/kinds.py for what
// codes, scales and zero points mean.
#pragma once

#include <cstdint>
#include <functional>

namespace bombus {

// How one value is stored. Four-bit codes are two a byte, the even input in the low half.
enum class Codes : int64_t { kF32, kBF16, kF16, kE4M3, kE5M2, kInt8, kInt4, kE2M1 };
enum class Scales : int64_t { kNone, kF32, kBF16, kF16, kE8M0, kE4M3 };

inline int64_t bytes_of(Scales kind) {
  switch (kind) {
    case Scales::kNone: return 0;
    case Scales::kF32: return 4;
    case Scales::kBF16: case Scales::kF16: return 2;
    default: return 1;
  }
}

// A weight as it is stored. A tile of tile_rows x tile_columns has one scale, and one zero point where there are any.
struct Matrix {
  const uint8_t* codes = nullptr;
  Codes kind = Codes::kF32;
  const uint8_t* scale = nullptr;
  Scales scale_kind = Scales::kNone;
  const uint8_t* zero = nullptr;
  float factor = 1.0f;  // what all scales are multiplied with
  int64_t outputs = 0, inputs = 0;
  int64_t tile_rows = 1, tile_columns = 1;  // at least 1
  int64_t grid_columns = 1;

  int64_t row_bytes() const {
    switch (kind) {
      case Codes::kF32: return inputs * 4;
      case Codes::kBF16: case Codes::kF16: return inputs * 2;
      case Codes::kInt4: case Codes::kE2M1: return (inputs + 1) / 2;
      default: return inputs;
    }
  }
};

enum class Values : int64_t { kF32, kBF16, kF16 };

// Rows of x (R, I), in one of the types that arithmetic is done in.
struct Rows {
  const void* values = nullptr;
  Values kind = Values::kF32;
  int64_t rows = 0, inputs = 0;
};

// Where tasks run beside the thread that calls.
class Pool {
 public:
  virtual ~Pool() = default;
  virtual int64_t threads() const = 0;  // beside the caller
  virtual void schedule(std::function<void()> task) = 0;
};

// One product y = x * W^T of a call: y (R, O) in float32.
struct Finish;  // rows.h
struct Product {
  Matrix weight;
  Rows x;
  float* y = nullptr;
  const Finish* finish = nullptr;  // what is done with y by whoever has computed a part of it
  bool with_last = false;          // whether parts are computed together with those of the product before, of the same size
};

// What an instruction set offers: products, and what lies between them, which is null where the next best ones do it.
struct Attention;      // attention.h
struct AttentionPart;
struct PairedScores;
struct Norm;           // rows.h
struct Rotation;
struct Kernels {
  const char* name;
  void (*multiply)(const Product* products, int64_t count, Pool& pool);
  const PairedScores* (*pairs)() = nullptr;  // for those that attend; may be null
  void (*attend)(const AttentionPart& part) = nullptr;
  void (*unite)(const Attention& call, const AttentionPart* parts, int64_t count) = nullptr;
  void (*norm)(const Norm& call, int64_t first, int64_t last) = nullptr;      // rows
  void (*rotate)(const Rotation& call, int64_t first, int64_t last) = nullptr;  // rows
  void (*finish)(const Finish& call, int64_t first, int64_t last) = nullptr;    // columns of all rows
  int64_t (*argmax)(const float* x, int64_t count, float* largest) = nullptr;
  double (*exponentials)(const float* x, int64_t count, float base, float* out) = nullptr;
};

const Kernels* plain_kernels();
const Kernels* avx2_kernels();    // null where it was not compiled in or the processor lacks it
const Kernels* avx512_kernels();  // the same
const Kernels* avx512_bf16_kernels();
const Kernels* amx_kernels();

// The kernels in use: the best ones, unless others were chosen.
const Kernels& active();
// Those in use, or the best ones below them that have what lies between products.
const Kernels& between();
// Chooses kernels by name; "" is the best ones. False where the processor or this build has none of that name.
bool choose(const char* name);

// Every byte of a buffer, read once: what the memory can give. The sum of its 64-bit words.
uint64_t read_all(const uint8_t* bytes, int64_t size, Pool& pool);

}  // namespace bombus
