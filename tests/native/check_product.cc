// The kernels without XLA, for sanitizers: random products on a pool of threads, compared with float64.
//
// Every buffer is of its own malloc, exactly as long as what it holds and often not aligned, so that a sanitizer sees a
// single byte read past its end. Prints how many products were compared, or the first that is wrong.
//
// check_product SEED ROUNDS THREADS
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "checking.h"
#include "kernels.h"
#include "parallel.h"

namespace bombus {

namespace {

// A product with buffers of its own, and what is right.
class Case {
 public:
  explicit Case(std::mt19937_64& random) : random_(random) {
    static const int64_t kTiles[] = {1, 3, 16, 24, 32, 48, 64, 80, 128, 1 << 20};
    Matrix& weight = product.weight;
    weight.kind = static_cast<Codes>(below(8));
    weight.scale_kind = static_cast<Scales>(below(6));
    const bool few = below(8) != 0;
    weight.outputs = few ? below(70) : 500 + below(700);
    weight.inputs = few ? 1 + below(300) : 1 + below(90);
    if (below(12) == 0) weight.inputs = 513 + below(600);
    weight.tile_rows = below(2) ? 1 : kTiles[below(10)];
    weight.tile_columns = kTiles[below(10)];
    if (weight.scale_kind == Scales::kNone) {
      weight.tile_rows = weight.outputs ? weight.outputs : 1;
      weight.tile_columns = weight.inputs;
    }
    weight.grid_columns = (weight.inputs + weight.tile_columns - 1) / weight.tile_columns;
    weight.factor = below(3) ? 1.0f : 0.015625f;
    const int64_t grid = (weight.outputs + weight.tile_rows - 1) / weight.tile_rows * weight.grid_columns;
    fill_codes();
    if (weight.scale_kind != Scales::kNone) fill_scales(grid);
    if (weight.kind == Codes::kInt4 && weight.scale_kind != Scales::kNone && below(2)) {
      zeros_ = bytes(grid);
      for (int64_t index = 0; index < grid; ++index) zeros_->put<uint8_t>(index, static_cast<uint8_t>(below(16)));
      weight.zero = zeros_->data();
    }
    fill_rows();
    y_.reset(new Bytes(static_cast<size_t>(product.x.rows * weight.outputs) * sizeof(float), 0));
    std::memset(y_->data(), 0xff, y_->size());
    product.y = reinterpret_cast<float*>(y_->data());
  }

  Product product;

  // Whether y is x * W^T to float32's rounding; says what is not. Not a number where one of the codes is none.
  bool right(const char* kernels) const {
    const Matrix& weight = product.weight;
    const int64_t inputs = weight.inputs;
    std::vector<double> values(static_cast<size_t>(inputs)), xs(static_cast<size_t>(product.x.rows * inputs));
    for (size_t at = 0; at < xs.size(); ++at) xs[at] = row_value(static_cast<int64_t>(at));
    for (int64_t output = 0; output < weight.outputs; ++output) {
      for (int64_t input = 0; input < inputs; ++input) values[static_cast<size_t>(input)] = value(output, input);
      for (int64_t row = 0; row < product.x.rows; ++row) {
        double sum = 0.0, bound = 1e-30;
        for (int64_t input = 0; input < inputs; ++input) {
          const double term = xs[static_cast<size_t>(row * inputs + input)] * values[static_cast<size_t>(input)];
          sum += term;
          bound += std::fabs(term) * 1e-6;
        }
        const double found = float_at(*y_, row * weight.outputs + output);
        if (std::isnan(sum) ? std::isnan(found) : std::fabs(found - sum) <= bound) continue;
        std::printf("%s: codes %d, scales %d, %dx%d in tiles of %dx%d, %d rows of kind %d: y[%d][%d] is %g, not %g\n", kernels,
                    static_cast<int>(weight.kind), static_cast<int>(weight.scale_kind), static_cast<int>(weight.outputs),
                    static_cast<int>(inputs), static_cast<int>(weight.tile_rows), static_cast<int>(weight.tile_columns),
                    static_cast<int>(product.x.rows), static_cast<int>(product.x.kind), static_cast<int>(row),
                    static_cast<int>(output), found, sum);
        return false;
      }
    }
    return true;
  }

 private:
  int64_t below(int64_t count) { return std::uniform_int_distribution<int64_t>(0, count - 1)(random_); }
  float normal() { return std::normal_distribution<float>()(random_); }
  std::unique_ptr<Bytes> bytes(int64_t size) {
    return std::unique_ptr<Bytes>(new Bytes(static_cast<size_t>(size), static_cast<size_t>(below(4))));
  }

  void fill_codes() {
    Matrix& weight = product.weight;
    codes_ = bytes(weight.outputs * weight.row_bytes());
    const bool numbers = below(6) != 0;  // else also what is no number
    const int64_t row = weight.row_bytes();
    for (int64_t at = 0; at < weight.outputs * row; ++at) {
      uint8_t code = static_cast<uint8_t>(below(256));
      const bool no_number = weight.kind == Codes::kE4M3 ? (code & 0x7f) == 0x7f : (code & 0x7f) >= 0x7c;
      // One in a row is enough, and infinities of two signs at most.
      if ((weight.kind == Codes::kE4M3 || weight.kind == Codes::kE5M2) && no_number && (numbers || below(20))) code &= 0x3f;
      if (weight.kind == Codes::kE5M2 && (code & 0x7f) == 0x7c) code |= 1;  // NaN instead
      codes_->put<uint8_t>(at, code);
    }
    const int64_t count = weight.outputs * weight.inputs;
    for (int64_t at = 0; at < count; ++at) {
      if (weight.kind == Codes::kF32) codes_->put<float>(at, normal());
      if (weight.kind == Codes::kBF16) codes_->put<uint16_t>(at, short_float(false));
      if (weight.kind == Codes::kF16) codes_->put<uint16_t>(at, short_float(true));
    }
    weight.codes = codes_->data();
  }

  // Random bits of bfloat16 or float16 between 2^-5 and 2^3; of float16 sometimes a subnormal number.
  uint16_t short_float(bool half) {
    const int64_t sign = below(2) << 15;
    if (half) return static_cast<uint16_t>(sign | (below(20) ? 10 + below(8) : 0) << 10 | below(1024));
    return static_cast<uint16_t>(sign | (122 + below(8)) << 7 | below(128));
  }

  void fill_scales(int64_t grid) {
    Matrix& weight = product.weight;
    const int64_t size = weight.scale_kind == Scales::kF32 ? 4 : weight.scale_kind == Scales::kBF16 || weight.scale_kind == Scales::kF16 ? 2 : 1;
    scales_ = bytes(grid * size);
    for (int64_t at = 0; at < grid; ++at) {
      if (weight.scale_kind == Scales::kF32) scales_->put<float>(at, std::exp(normal()));
      if (size == 2) scales_->put<uint16_t>(at, short_float(weight.scale_kind == Scales::kF16));
      if (weight.scale_kind == Scales::kE8M0) scales_->put<uint8_t>(at, static_cast<uint8_t>(110 + below(30)));
      if (weight.scale_kind == Scales::kE4M3) scales_->put<uint8_t>(at, static_cast<uint8_t>(below(127)));
    }
    weight.scale = scales_->data();
  }

  void fill_rows() {
    Rows& x = product.x;
    x.kind = static_cast<Values>(below(3));
    x.inputs = product.weight.inputs;
    x.rows = product.weight.outputs > 200 ? 1 + below(5) : below(3) ? below(6) : below(40);
    const int64_t count = x.rows * x.inputs;
    x_ = bytes(count * (x.kind == Values::kF32 ? 4 : 2));
    for (int64_t at = 0; at < count; ++at) {
      if (x.kind == Values::kF32) x_->put<float>(at, normal());
      if (x.kind == Values::kBF16) x_->put<uint16_t>(at, short_float(false));
      if (x.kind == Values::kF16) x_->put<uint16_t>(at, short_float(true));
    }
    x.values = x_->data();
  }

  double row_value(int64_t at) const {
    if (product.x.kind == Values::kF32) return float_at(*x_, at);
    return product.x.kind == Values::kBF16 ? bfloat16_at(*x_, at) : float16_at(*x_, at);
  }

  double value(int64_t output, int64_t input) const {
    const Matrix& weight = product.weight;
    const int64_t at = output * weight.inputs + input;
    const int64_t tile = output / weight.tile_rows * weight.grid_columns + input / weight.tile_columns;
    const int64_t row = weight.row_bytes();
    double value = 0.0;
    const auto four = [&] { return codes_->get<uint8_t>(output * row + input / 2) >> 4 * (input % 2) & 15; };
    switch (weight.kind) {
      case Codes::kF32: value = float_at(*codes_, at); break;
      case Codes::kBF16: value = bfloat16_at(*codes_, at); break;
      case Codes::kF16: value = float16_at(*codes_, at); break;
      case Codes::kE4M3: value = decode(codes_->get<uint8_t>(at), 4, 3, 'n'); break;
      case Codes::kE5M2: value = decode(codes_->get<uint8_t>(at), 5, 2, 'f'); break;
      case Codes::kInt8: value = codes_->get<int8_t>(at); break;
      case Codes::kInt4: value = four() - (zeros_ ? zeros_->get<uint8_t>(tile) : 8); break;
      case Codes::kE2M1: value = decode(static_cast<uint32_t>(four()), 2, 1, ' '); break;
    }
    double scale = weight.factor;
    switch (weight.scale_kind) {
      case Scales::kNone: break;
      case Scales::kF32: scale *= float_at(*scales_, tile); break;
      case Scales::kBF16: scale *= bfloat16_at(*scales_, tile); break;
      case Scales::kF16: scale *= float16_at(*scales_, tile); break;
      case Scales::kE8M0: scale *= std::ldexp(1.0, scales_->get<uint8_t>(tile) - 127); break;
      case Scales::kE4M3: scale *= decode(scales_->get<uint8_t>(tile), 4, 3, 'n'); break;
    }
    return value * scale;
  }

  std::mt19937_64& random_;
  std::unique_ptr<Bytes> codes_, scales_, zeros_, x_, y_;
};

// Products of one call, several of them at once.
bool check(const Kernels& kernels, uint64_t seed, Pool& pool, std::atomic<int>& compared) {
  std::mt19937_64 random(seed);
  std::deque<Case> cases;
  std::vector<Product> products;
  const int count = 1 + static_cast<int>(random() % 3);
  for (int index = 0; index < count; ++index) {
    cases.emplace_back(random);
    products.push_back(cases.back().product);
  }
  kernels.multiply(products.data(), count, pool);
  for (const Case& one : cases)
    if (!one.right(kernels.name)) return false;
  compared += count;
  return true;
}

// The sum of a buffer: of its 64-bit words, and of the bytes behind the last.
bool check_read(int64_t size, Pool& pool) {
  Bytes bytes(static_cast<size_t>(size), static_cast<size_t>(size % 4));
  for (int64_t at = 0; at < size; ++at) bytes.put<uint8_t>(at, static_cast<uint8_t>(at * 7 + at / 1000));
  const int64_t words = size / 8;
  uint64_t expected = 0;
  for (int64_t word = 0; word < words; ++word) expected += bytes.get<uint64_t>(word);
  for (int64_t at = words * 8; at < size; ++at) expected += bytes.get<uint8_t>(at);
  const uint64_t found = read_all(bytes.data(), size, pool);
  if (found != expected) std::printf("the sum of %lld bytes is wrong\n", static_cast<long long>(size));
  return found == expected;
}

// Callers of their own and tasks of the pool multiply at the same time, and wait for each other's tasks.
bool check_all(const Kernels& kernels, uint64_t seed, int rounds, int threads, std::atomic<int>& compared) {
  std::atomic<bool> right{true};
  std::atomic<int> left{rounds};
  {
    Threads pool(threads);
    const auto run = [&] {
      for (int round; right && (round = --left) >= 0;)
        if (!check(kernels, seed * 1000003 + static_cast<uint64_t>(round), pool, compared)) right = false;
    };
    for (int task = 0; task + 1 < threads; ++task) pool.schedule(run);
    std::thread other(run);
    run();
    other.join();
  }
  return right;
}

}  // namespace
}  // namespace bombus

int main(int count, char** arguments) {
  using namespace bombus;
  if (count != 4) return 2;
  const uint64_t seed = std::strtoull(arguments[1], nullptr, 10);
  const int rounds = std::atoi(arguments[2]), threads = std::atoi(arguments[3]);
  std::atomic<int> compared{0};
  for (const Kernels* kernels : {plain_kernels(), avx2_kernels(), avx512_kernels(), avx512_bf16_kernels(), amx_kernels()}) {
    if (!kernels) continue;
    if (!choose(kernels->name) || &active() != kernels) return 1;
    if (!check_all(active(), seed, rounds, threads, compared)) return 1;
    std::printf("%s ", kernels->name);
  }
  if (choose("none") || !choose("")) return 1;
  {
    Threads pool(threads);
    for (const int64_t size : {0, 1, 7, 8, 255, 256, 391, 1 << 20, (1 << 20) + 1, 3000001})
      if (!check_read(size, pool)) return 1;
  }
  std::printf("%d products are right\n", compared.load());
  return 0;
}
