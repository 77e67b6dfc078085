// Compares the kernels of AVX-512, AVX-512 BF16 and AMX, emulated, with sums in float64: every format's tiles, sizes up
// to several tiles, buffers of exactly the right size. Prints the worst error of each; not 0 where one is wrong.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

#include "attention.h"
#include "kernels.h"

// dispatch.cc is not here, which would need the others.
const bombus::Kernels& bombus::between() { return *avx512_kernels(); }

namespace {

using namespace bombus;

std::mt19937_64 random_bits(7);

int64_t below(int64_t bound) { return static_cast<int64_t>(random_bits() % static_cast<uint64_t>(bound)); }

// Threads of its own for each task: what a task leaves in its thread must not matter to another.
class Threads final : public Pool {
 public:
  explicit Threads(int64_t count) : count_(count) {}
  ~Threads() override {
    for (std::thread& thread : threads_) thread.join();
  }
  int64_t threads() const override { return count_; }
  void schedule(std::function<void()> task) override { threads_.emplace_back(std::move(task)); }

 private:
  int64_t count_;
  std::vector<std::thread> threads_;
};

// So many bytes and not one more, from an address that is a multiple of `unit` and of nothing else.
class Bytes {
 public:
  Bytes(int64_t size, int64_t unit) : size_(size), skipped_(unit * (1 + below(4) * 2)) {
    all_.reset(new uint8_t[static_cast<size_t>(size + skipped_)]);
    for (int64_t index = 0; index < size; ++index) data()[index] = static_cast<uint8_t>(random_bits());
  }
  uint8_t* data() const { return all_.get() + skipped_; }
  int64_t size() const { return size_; }

 private:
  int64_t size_, skipped_;
  std::unique_ptr<uint8_t[]> all_;
};

// A sign, an exponent and a fraction of so many bits: in general, and what is special about one format.
double small_float(int code, int exponent_bits, int fraction_bits, bool ieee) {
  const int fractions = 1 << fraction_bits, bias = (1 << (exponent_bits - 1)) - 1;
  const int fraction = code % fractions, exponent = code / fractions % (1 << exponent_bits);
  const double sign = code >> (exponent_bits + fraction_bits) & 1 ? -1.0 : 1.0;
  if (ieee && exponent == (1 << exponent_bits) - 1) return fraction ? NAN : sign * INFINITY;
  if (exponent == 0) return sign * std::ldexp(fraction, 1 - bias - fraction_bits);
  return sign * std::ldexp(fractions + fraction, exponent - bias - fraction_bits);
}

double e4m3_value(int code) { return (code & 127) == 127 ? NAN : small_float(code, 4, 3, false); }

int bits_of(Codes kind) {
  switch (kind) {
    case Codes::kF32: return 32;
    case Codes::kBF16: case Codes::kF16: return 16;
    case Codes::kInt4: case Codes::kE2M1: return 4;
    default: return 8;
  }
}

double wide(const uint8_t* bytes, int64_t index, int exponent_bits, int fraction_bits) {
  uint16_t code;
  std::memcpy(&code, bytes + 2 * index, sizeof code);
  return small_float(code, exponent_bits, fraction_bits, true);
}

double single(const uint8_t* bytes, int64_t index) {
  float value;
  std::memcpy(&value, bytes + 4 * index, sizeof value);
  return value;
}

double element(const Matrix& weight, int64_t output, int64_t input) {
  const uint8_t* row = weight.codes + output * weight.row_bytes();
  const int nibble = row[bits_of(weight.kind) == 4 ? input / 2 : 0] >> 4 * (input % 2) & 15;
  switch (weight.kind) {
    case Codes::kF32: return single(row, input);
    case Codes::kBF16: return wide(row, input, 8, 7);
    case Codes::kF16: return wide(row, input, 5, 10);
    case Codes::kE4M3: return e4m3_value(row[input]);
    case Codes::kE5M2: return small_float(row[input], 5, 2, true);
    case Codes::kInt8: return static_cast<int8_t>(row[input]);
    case Codes::kInt4: return nibble;
    case Codes::kE2M1: return small_float(nibble, 2, 1, false);
  }
  return NAN;
}

double scale_of(const Matrix& weight, int64_t index) {
  switch (weight.scale_kind) {
    case Scales::kNone: return weight.factor;
    case Scales::kF32: return weight.factor * single(weight.scale, index);
    case Scales::kBF16: return weight.factor * wide(weight.scale, index, 8, 7);
    case Scales::kF16: return weight.factor * wide(weight.scale, index, 5, 10);
    case Scales::kE8M0: return weight.factor * std::ldexp(1.0, weight.scale[index] - 127);
    case Scales::kE4M3: return weight.factor * e4m3_value(weight.scale[index]);
  }
  return NAN;
}

double row_value(const Rows& x, int64_t index) {
  const auto* bytes = static_cast<const uint8_t*>(x.values);
  if (x.kind == Values::kF32) return single(bytes, index);
  return x.kind == Values::kBF16 ? wide(bytes, index, 8, 7) : wide(bytes, index, 5, 10);
}

// A format's tile; 0 is as long as the weight.
struct Format {
  const char* name;
  Codes kind;
  Scales scale = Scales::kNone;
  int64_t tile_rows = 0, tile_columns = 0;
  bool zeros = false;
};

const Format kFormats[] = {
    {"f32", Codes::kF32},
    {"bf16", Codes::kBF16},
    {"f16", Codes::kF16},
    {"e4m3 128x128", Codes::kE4M3, Scales::kF32, 128, 128},
    {"e4m3 128x128 bf16", Codes::kE4M3, Scales::kBF16, 128, 128},
    {"e4m3 channel", Codes::kE4M3, Scales::kF32, 1, 0},
    {"e4m3 tensor", Codes::kE4M3, Scales::kF32, 0, 0},
    {"e4m3 48x80", Codes::kE4M3, Scales::kF16, 48, 80},
    {"e4m3 3x64", Codes::kE4M3, Scales::kF32, 3, 64},
    {"e4m3 7x64", Codes::kE4M3, Scales::kF32, 7, 64},
    {"e4m3 5x384", Codes::kE4M3, Scales::kF32, 5, 384},
    {"e5m2 128x128", Codes::kE5M2, Scales::kF32, 128, 128},
    {"e5m2 1x96", Codes::kE5M2, Scales::kF32, 1, 96},
    {"mxfp8", Codes::kE4M3, Scales::kE8M0, 1, 32},
    {"mxfp8 e5m2", Codes::kE5M2, Scales::kE8M0, 1, 32},
    {"int8 channel", Codes::kInt8, Scales::kF32, 1, 0},
    {"int8 32", Codes::kInt8, Scales::kF32, 1, 32},
    {"int8 64", Codes::kInt8, Scales::kF16, 1, 64},
    {"int8 128", Codes::kInt8, Scales::kBF16, 1, 128},
    {"int8 24", Codes::kInt8, Scales::kF32, 1, 24},
    {"int8 2", Codes::kInt8, Scales::kF32, 1, 2},
    {"e4m3 1x8", Codes::kE4M3, Scales::kF32, 1, 8},
    {"int4 4", Codes::kInt4, Scales::kF32, 1, 4},
    {"bfp8", Codes::kInt8, Scales::kE8M0, 1, 16},
    {"bfp8 out", Codes::kInt8, Scales::kE8M0, 16, 1},
    {"int4 128", Codes::kInt4, Scales::kBF16, 1, 128},
    {"int4 32", Codes::kInt4, Scales::kBF16, 1, 32},
    {"int4 channel", Codes::kInt4, Scales::kF32, 1, 0},
    {"int4 128 zeros", Codes::kInt4, Scales::kBF16, 1, 128, true},
    {"int4 64 zeros", Codes::kInt4, Scales::kF16, 1, 64, true},
    {"int4 32 zeros", Codes::kInt4, Scales::kF32, 1, 32, true},
    {"int4 16 zeros", Codes::kInt4, Scales::kF32, 1, 16, true},
    {"int4 20 zeros", Codes::kInt4, Scales::kF32, 2, 20, true},
    {"int4 channel zeros", Codes::kInt4, Scales::kF32, 1, 0, true},
    {"bfp4", Codes::kInt4, Scales::kE8M0, 1, 16},
    {"bfp4 out", Codes::kInt4, Scales::kE8M0, 16, 1},
    {"mxfp4", Codes::kE2M1, Scales::kE8M0, 1, 32},
    {"nvfp4", Codes::kE2M1, Scales::kE4M3, 1, 16},
};

void put_16(uint8_t* bytes, int64_t index, uint16_t bits) { std::memcpy(bytes + 2 * index, &bits, sizeof bits); }
void put_float(uint8_t* bytes, int64_t index, float value) { std::memcpy(bytes + 4 * index, &value, sizeof value); }

// Random values of either sign, of a middling size.
float number() { return static_cast<float>((static_cast<double>(below(2000001)) - 1000000.0) * 1e-6); }

void fill_floats(uint8_t* bytes, int64_t count, int bits, bool brain) {
  for (int64_t index = 0; index < count; ++index) {
    // Exponents about that of 1, in all fractions.
    const uint16_t sign = static_cast<uint16_t>(below(2) << 15);
    if (bits == 32) put_float(bytes, index, number());
    else if (brain) put_16(bytes, index, static_cast<uint16_t>(sign | (120 + below(8)) << 7 | below(128)));
    else put_16(bytes, index, static_cast<uint16_t>(sign | (10 + below(6)) << 10 | below(1024)));
  }
}

struct Case {
  Format format;
  Values x;
  int64_t rows, outputs, inputs;
  bool all_codes;  // NaN and infinity too
  double factor = 1.0;
};

int64_t failures = 0;
double worst = 0.0;

void say(const Kernels& kernels, const Case& one, int64_t row, int64_t output, double found, double expected, double bound) {
  if (++failures <= 20)
    std::printf("%s: %s, %d, %d x (%d, %d): y[%d, %d] = %.9g, not %.9g; %.3g of the sum of magnitudes\n", kernels.name,
                one.format.name, static_cast<int>(one.x), static_cast<int>(one.rows), static_cast<int>(one.outputs),
                static_cast<int>(one.inputs), static_cast<int>(row), static_cast<int>(output), found, expected,
                std::abs(found - expected) / bound);
}

struct Filled {
  Matrix weight;
  Rows x;
  Bytes codes, scales, zeros, values;
};

Filled fill(const Case& one) {
  const Format& format = one.format;
  Matrix weight;
  weight.kind = format.kind;
  weight.scale_kind = format.scale;
  weight.outputs = one.outputs;
  weight.inputs = one.inputs;
  weight.tile_rows = format.tile_rows ? format.tile_rows : std::max<int64_t>(one.outputs, 1);
  weight.tile_columns = format.tile_columns ? format.tile_columns : std::max<int64_t>(one.inputs, 1);
  weight.grid_columns = (one.inputs + weight.tile_columns - 1) / weight.tile_columns;
  weight.factor = static_cast<float>(one.factor);
  const int bits = bits_of(format.kind), wide_scale = format.scale == Scales::kF32 ? 4 : 2;
  const int64_t grid = (one.outputs + weight.tile_rows - 1) / weight.tile_rows * weight.grid_columns;
  const bool bytes = format.scale == Scales::kE8M0 || format.scale == Scales::kE4M3;
  const int scale_size = format.scale == Scales::kNone ? 0 : bytes ? 1 : wide_scale;
  const int64_t values = one.rows * one.inputs, x_size = one.x == Values::kF32 ? 4 : 2;
  Filled made{weight,
              {},
              Bytes(one.outputs * weight.row_bytes(), bits > 8 ? bits / 8 : 1),
              Bytes(grid * scale_size, scale_size ? scale_size : 1),
              Bytes(format.zeros ? grid : 0, 1),
              Bytes(values * x_size, x_size)};
  if (bits > 8) fill_floats(made.codes.data(), one.outputs * one.inputs, bits, format.kind == Codes::kBF16);
  if (!one.all_codes)
    for (int64_t index = 0; bits == 8 && index < made.codes.size(); ++index) {
      uint8_t& code = made.codes.data()[index];
      if (format.kind == Codes::kE4M3 && (code & 127) == 127) code = 0x3a;
      if (format.kind == Codes::kE5M2 && (code & 127) > 0x7b) code ^= 0x20;
    }
  for (int64_t index = 0; bytes && index < grid; ++index) {
    uint8_t& scale = made.scales.data()[index];
    if (format.scale == Scales::kE8M0) scale = static_cast<uint8_t>(110 + below(20));
    else if ((scale & 127) == 127 && !one.all_codes) scale = 0x42;
  }
  if (scale_size > 1) fill_floats(made.scales.data(), grid, 8 * scale_size, format.scale == Scales::kBF16);
  // A checkpoint may have any zero point of eight bits.
  for (int64_t index = 0; index < made.zeros.size(); ++index)
    if (below(8)) made.zeros.data()[index] &= 15;
  fill_floats(made.values.data(), values, static_cast<int>(8 * x_size), one.x == Values::kBF16);
  made.weight.codes = made.codes.data();
  if (scale_size) made.weight.scale = made.scales.data();
  if (format.zeros) made.weight.zero = made.zeros.data();
  made.x = {made.values.data(), one.x, one.rows, one.inputs};
  return made;
}

void compare(const Kernels& kernels, const Case& one, const Filled& filled, const float* y) {
  const Matrix& weight = filled.weight;
  const double middle = weight.kind == Codes::kInt4 ? 8.0 : 0.0;
  std::vector<double> values(static_cast<size_t>(weight.inputs)), sizes(values.size());
  for (int64_t output = 0; output < one.outputs; ++output) {
    for (int64_t input = 0; input < one.inputs; ++input) {
      const int64_t place = output / weight.tile_rows * weight.grid_columns + input / weight.tile_columns;
      const double scale = scale_of(weight, place), code = element(weight, output, input);
      const double zero = weight.zero ? weight.zero[place] : middle;
      values[static_cast<size_t>(input)] = (code - zero) * scale;
      // Codes and zero points may be summed by themselves, both less 8.
      sizes[static_cast<size_t>(input)] = (std::abs(code - middle) + std::abs(zero - middle)) * std::abs(scale);
    }
    for (int64_t row = 0; row < one.rows; ++row) {
      double expected = 0.0, bound = 1e-30;
      for (int64_t input = 0; input < one.inputs; ++input) {
        const double x = row_value(filled.x, row * one.inputs + input);
        expected += x * values[static_cast<size_t>(input)];
        bound += std::abs(x) * sizes[static_cast<size_t>(input)];
      }
      const double found = y[row * one.outputs + output];
      if (!std::isfinite(expected)) {
        if (std::isnan(expected) ? !std::isnan(found) : found != expected) say(kernels, one, row, output, found, expected, bound);
        continue;
      }
      const double error = std::abs(found - expected) / bound;
      if (!(error <= 1e-6)) say(kernels, one, row, output, found, expected, bound);
      else worst = std::max(worst, error);
    }
  }
}

// Several products with one x, as a call has them.
void check(const Kernels& kernels, const std::vector<Case>& cases, int64_t threads) {
  std::vector<Filled> filled;
  std::vector<std::unique_ptr<float[]>> results;
  std::vector<Product> products;
  for (const Case& one : cases) filled.push_back(fill(one));
  for (size_t index = 0; index < cases.size(); ++index) {
    const auto size = static_cast<size_t>(cases[index].rows * cases[index].outputs);
    results.emplace_back(new float[size]);
    std::fill_n(results.back().get(), size, -7.0f);
    products.push_back({filled[index].weight, filled[index].x, results.back().get()});
  }
  {
    Threads pool(threads);
    kernels.multiply(products.data(), static_cast<int64_t>(products.size()), pool);
  }
  for (size_t index = 0; index < cases.size(); ++index) compare(kernels, cases[index], filled[index], results[index].get());
}

// Every code as an input's only value that counts: y is that value, to the bit.
void check_codes(const Kernels& kernels, Codes kind, Values type, int64_t rows) {
  Case one{{"all codes", kind, Scales::kF32, 1, 0}, type, rows, bits_of(kind) == 4 ? 16 : 256, 3, true};
  if (bits_of(kind) == 16) one.outputs = 65536;
  Filled filled = fill(one);
  const int64_t bytes = filled.weight.row_bytes();
  std::memset(filled.codes.data(), 0, static_cast<size_t>(filled.codes.size()));
  std::memset(filled.values.data(), 0, static_cast<size_t>(filled.values.size()));
  for (int64_t code = 0; code < one.outputs; ++code) {
    uint8_t* row = filled.codes.data() + code * bytes;
    if (bits_of(kind) == 4) row[0] = static_cast<uint8_t>(code << 4);
    else if (bits_of(kind) == 8) row[1] = static_cast<uint8_t>(code);
    else put_16(row, 1, static_cast<uint16_t>(code));
    put_float(filled.scales.data(), code, 1.0f);
  }
  for (int64_t row = 0; row < rows; ++row) {
    if (type == Values::kF32) put_float(filled.values.data(), row * 3 + 1, 1.0f);
    else put_16(filled.values.data(), row * 3 + 1, type == Values::kBF16 ? 0x3f80 : 0x3c00);
  }
  std::vector<float> y(static_cast<size_t>(rows * one.outputs));
  const Product product{filled.weight, filled.x, y.data()};
  Threads pool(0);
  kernels.multiply(&product, 1, pool);
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t code = 0; code < one.outputs; ++code) {
      const double expected = element(filled.weight, code, 1) - (kind == Codes::kInt4 ? 8.0 : 0.0);
      const double found = y[static_cast<size_t>(row * one.outputs + code)];
      // Subnormal bfloat16 count as zero in the instructions for it.
      const bool subnormal = kind == Codes::kBF16 && std::abs(expected) < std::ldexp(1.0, -126);
      if (subnormal && found == 0.0) continue;
      if (std::isnan(expected) ? !std::isnan(found) : found != expected) say(kernels, one, row, code, found, expected, 1.0);
    }
}

// Queries of bfloat16 with the keys of a block, in pairs: as many queries as are multiplied at a time, and others.
void check_pairs(const PairedScores& pairs) {
  for (const int64_t size : {1, 2, 31, 32, 33, 80, 128})
    for (const int64_t queries : {1, 8, 19}) {
      const int64_t stride = (size + 1) / 2 * 2;
      const Bytes keys(kSlots * size * 2, 2), q(queries * stride * 2, 2);
      fill_floats(keys.data(), kSlots * size, 16, true);
      fill_floats(q.data(), queries * stride, 16, true);
      const uint8_t* rows[kSlots];
      for (int64_t slot = 0; slot < kSlots; ++slot) rows[slot] = keys.data() + slot * size * 2;
      std::vector<int32_t> reach(static_cast<size_t>(queries));
      for (int32_t& slots : reach) slots = static_cast<int32_t>(below(kSlots + 1));
      for (int64_t r = 0; r < queries; ++r)
        if (size % 2) put_16(q.data(), r * stride + size, 0);
      std::vector<uint16_t> words(static_cast<size_t>(queries * stride));
      std::vector<uint16_t> turned(static_cast<size_t>(kSlots * ((size + 31) / 32 * 32)));
      std::memcpy(words.data(), q.data(), static_cast<size_t>(q.size()));
      std::vector<float> scores(static_cast<size_t>(queries * kSlots), NAN);
      pairs.turn(rows, size, turned.data());
      pairs.score(turned.data(), reach.data(), words.data(), stride, queries, scores.data());
      for (int64_t r = 0; r < queries; ++r)
        for (int64_t slot = 0; slot < reach[static_cast<size_t>(r)]; ++slot) {
          double expected = 0.0, bound = 1e-30;
          for (int64_t at = 0; at < size; ++at) {
            const double product = wide(rows[slot], at, 8, 7) * wide(q.data(), r * stride + at, 8, 7);
            expected += product;
            bound += std::abs(product);
          }
          const double error = std::abs(static_cast<double>(scores[static_cast<size_t>(r * kSlots + slot)]) - expected) / bound;
          worst = std::max(worst, error);
          if (error <= 1e-6) continue;
          ++failures;
          std::printf("pairs: size %d, query %d of %d, slot %d: %g\n", static_cast<int>(size), static_cast<int>(r),
                      static_cast<int>(queries), static_cast<int>(slot), error);
          return;
        }
    }
}

int64_t size_of(const int64_t* sizes, int64_t count, int64_t most) {
  return below(2) ? sizes[below(count)] : 1 + below(most);
}

void check_all(const Kernels& kernels, int64_t repeats) {
  static const int64_t kInputs[] = {1, 2, 16, 31, 32, 33, 63, 64, 65, 127, 128, 129, 192, 256, 257, 320, 384, 512, 513};
  static const int64_t kOutputs[] = {1, 2, 3, 4, 5, 15, 16, 17, 31, 32, 33, 48, 49, 64, 65, 80};
  worst = 0.0;
  for (const Format& format : kFormats)
    for (int64_t repeat = 0; repeat < repeats; ++repeat)
      for (const Values type : {Values::kBF16, Values::kF32, Values::kF16}) {
        if (type != Values::kBF16 && repeat % 4) continue;
        const int64_t rows = repeat % 3 == 0 ? 1 + below(4) : 1 + below(repeat % 3 == 1 ? 20 : 50);
        Case one{format, type, rows, size_of(kOutputs, 16, 90), size_of(kInputs, 19, 560), below(4) == 0};
        if (format.scale == Scales::kE4M3) one.factor = 1.0 / 37.0;
        if (repeat == 1) one.inputs = 0;
        std::vector<Case> call = {one};
        // Another weight, of another format, in the same call.
        if (below(3) == 0) {
          Case other{kFormats[below(sizeof kFormats / sizeof kFormats[0])], type, rows, size_of(kOutputs, 16, 90), one.inputs, false};
          call.push_back(other);
        }
        if (below(9) == 0) call[0].outputs = 0;
        check(kernels, call, below(3));
      }
  // Parts of several tiles of outputs, and of rows.
  for (const Format& format : kFormats) check(kernels, {{format, Values::kBF16, 20, 145, 200, false}}, 0);
  // More rows than are decoded for at once.
  check(kernels, {{kFormats[3], Values::kBF16, 530, 17, 160, false}, {kFormats[4], Values::kBF16, 530, 33, 160, false}}, 1);
  // Scales that are NaN, in rows long enough for them to be read sixteen at a time.
  for (const int64_t rows : {2, 6})
    check(kernels, {{kFormats[sizeof kFormats / sizeof kFormats[0] - 1], Values::kBF16, rows, 9, 523, true, 0.25}}, 0);
  for (const Codes kind : {Codes::kE4M3, Codes::kE5M2, Codes::kInt8, Codes::kInt4, Codes::kE2M1, Codes::kBF16, Codes::kF16})
    for (const int64_t rows : {1, 2, 4, 5}) {
      if (kind != Codes::kF16) check_codes(kernels, kind, Values::kBF16, rows);
      if (rows % 4 == 1) check_codes(kernels, kind, Values::kF32, rows);
    }
  if (kernels.pairs) check_pairs(*kernels.pairs());
  std::printf("%s: %.2g\n", kernels.name, worst);
}

}  // namespace

int main(int count, char** arguments) {
  // How often, and which kernels if not all.
  const int64_t repeats = count > 1 ? std::atoll(arguments[1]) : 3;
  const std::string only = count > 2 ? arguments[2] : "";
  for (const Kernels* kernels : {avx512_kernels(), avx512_bf16_kernels(), amx_kernels()}) {
    if (!kernels) return std::puts("not all kernels were compiled"), 2;
    if (only.empty() || only == kernels->name) check_all(*kernels, repeats);
  }
#if defined(__SSE__)
  // Where the processor takes subnormal numbers for zero, as in XLA's threads.
  _mm_setcsr(_mm_getcsr() | 0x8040);
  for (const Kernels* kernels : {avx512_kernels(), avx512_bf16_kernels(), amx_kernels()})
    for (const Codes kind : {Codes::kE4M3, Codes::kE5M2}) check_codes(*kernels, kind, Values::kBF16, 4);
#endif
  if (failures) std::printf("%d are wrong\n", static_cast<int>(failures));
  return failures ? 1 : 0;
}
