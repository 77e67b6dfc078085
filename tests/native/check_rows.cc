// Normalization, rotation, what follows products, argmax, the next token, and what is read next, without XLA, for sanitizers:
// random rows on a pool of threads, compared with float64.
//
// As in check_product.cc every buffer is exactly as long as what it holds.
//
// check_rows SEED ROUNDS THREADS
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "ahead.h"
#include "checking.h"
#include "next_token.h"
#include "rows.h"

namespace bombus {

namespace {

// Numbers of one of the two types.
struct Numbers {
  Values kind;
  Bytes bytes;

  Numbers(Random& random, Values kind, int64_t count)
      : kind(kind), bytes(static_cast<size_t>(count * (kind == Values::kF32 ? 4 : 2)), static_cast<size_t>(random.below(4)) * 4) {
    for (int64_t at = 0; at < count; ++at) {
      const float value = random.normal();
      uint32_t word;
      std::memcpy(&word, &value, 4);
      if (kind == Values::kF32) bytes.put<float>(at, value);
      else bytes.put<uint16_t>(at, static_cast<uint16_t>(word >> 16));
    }
  }
  double at(int64_t index) const { return kind == Values::kF32 ? float_at(bytes, index) : bfloat16_at(bytes, index); }
  const float* floats() const { return reinterpret_cast<const float*>(bytes.data()); }
};

Values some_kind(Random& random) { return random.below(2) ? Values::kF32 : Values::kBF16; }

bool close(const char* what, const Numbers& out, int64_t at, double expected, double size) {
  const double bound = (out.kind == Values::kF32 ? 1e-6 : 0x1p-8) * std::fabs(expected) + 1e-6 * size;
  if (std::fabs(out.at(at) - expected) <= bound) return true;
  std::printf("%s: value %d is %g, not %g\n", what, static_cast<int>(at), out.at(at), expected);
  return false;
}

bool check_norm(Random& random, Pool& pool) {
  Norm call;
  call.rows = random.below(40);
  call.size = 1 + random.below(random.below(4) ? 90 : 3000);
  const Numbers x(random, some_kind(random), call.rows * call.size), scale(random, some_kind(random), call.size);
  Numbers out(random, some_kind(random), call.rows * call.size);
  call.x = x.bytes.data(), call.x_kind = x.kind;
  call.scale = scale.bytes.data(), call.scale_kind = scale.kind;
  call.out = out.bytes.data(), call.out_kind = out.kind;
  call.epsilon = 1e-3f;
  call.offset = static_cast<float>(random.below(2));
  rms_norm(call, pool);
  for (int64_t row = 0; row < call.rows; ++row) {
    double sum = 0.0;
    for (int64_t at = row * call.size; at < (row + 1) * call.size; ++at) sum += x.at(at) * x.at(at);
    const double factor = 1.0 / std::sqrt(sum / static_cast<double>(call.size) + static_cast<double>(call.epsilon));
    for (int64_t at = 0; at < call.size; ++at) {
      const double expected = x.at(row * call.size + at) * factor * (static_cast<double>(call.offset) + scale.at(at));
      if (!close("norm", out, row * call.size + at, expected, 0.0)) return false;
    }
  }
  return true;
}

bool check_rotation(Random& random, Pool& pool) {
  Rotation call;
  call.tokens = random.below(9);
  call.heads = 1 + random.below(20);
  call.size = 2 + random.below(random.below(3) ? 40 : 300);
  call.pairs = 1 + random.below(call.size / 2);
  call.interleaved = random.below(2) != 0;
  const int64_t count = call.tokens * call.heads * call.size;
  const Numbers x(random, some_kind(random), count), cos(random, Values::kF32, call.tokens * call.pairs);
  Numbers sin(random, Values::kF32, 2 * call.tokens * call.pairs), out(random, x.kind, count);
  call.x = x.bytes.data(), call.kind = x.kind, call.out = out.bytes.data();
  call.cos = cos.floats(), call.sin = sin.floats();
  // Normed before in half of all cases: what the norm gives by itself is compared above.
  const Numbers scale(random, some_kind(random), call.size);
  Numbers normed(random, x.kind, count);
  Norm norm;
  norm.x = call.x, norm.x_kind = norm.out_kind = x.kind, norm.out = normed.bytes.data();
  norm.scale = scale.bytes.data(), norm.scale_kind = scale.kind;
  norm.rows = call.tokens * call.heads, norm.size = call.size;
  norm.epsilon = 1e-3f, norm.offset = static_cast<float>(random.below(2));
  rms_norm(norm, pool);
  const bool norms = random.below(2) != 0;
  if (norms) call.scale = norm.scale, call.scale_kind = norm.scale_kind, call.epsilon = norm.epsilon, call.offset = norm.offset;
  const Numbers& turned_ones = norms ? normed : x;
  rotate(call, pool);
  for (int64_t row = 0; row < call.tokens * call.heads; ++row)
    for (int64_t at = 0; at < call.size; ++at) {
      const int64_t place = row * call.size, token = row / call.heads;
      const int64_t pair = call.interleaved ? at / 2 : at % call.pairs;
      const bool first = call.interleaved ? at % 2 == 0 : at < call.pairs;
      const int64_t other = call.interleaved ? at ^ 1 : first ? at + call.pairs : at - call.pairs;
      double expected = turned_ones.at(place + at), size = 0.0;
      if (at < 2 * call.pairs) {
        const double turned = turned_ones.at(place + other) * sin.at((2 * token + 1) * call.pairs + pair);
        expected = expected * cos.at(token * call.pairs + pair);
        size = std::fabs(expected) + std::fabs(turned);
        expected += first ? -turned : turned;
      }
      if (!close("rotation", out, place + at, expected, size)) return false;
    }
  return true;
}

double activated(Activation activation, double x) {
  if (activation == Activation::kNone) return x;
  if (activation == Activation::kSilu) return x / (1.0 + std::exp(-x));
  return x / 2 * (1.0 + std::tanh(std::sqrt(2 / std::acos(-1.0)) * (x + 0.044715 * x * x * x)));
}

// All columns in two parts, or as one product of a call: what follows it is done part by part, by several threads.
bool check_finish(Random& random, Pool& pool) {
  Finish call;
  call.rows = random.below(6);
  call.size = 1 + random.below(random.below(3) ? 70 : 700);
  call.activation = static_cast<Activation>(random.below(3));
  const int64_t count = call.rows * call.size, inputs = 1 + random.below(20);
  const bool second = random.below(2) != 0, adds = random.below(2) != 0, multiplies = random.below(2) != 0;
  const Values inner = some_kind(random);
  const Numbers biases[2] = {{random, some_kind(random), call.size}, {random, some_kind(random), call.size}};
  const Numbers residual(random, some_kind(random), count);
  Numbers y[2] = {{random, Values::kF32, count}, {random, Values::kF32, count}}, out(random, adds ? residual.kind : inner, count);
  Finish::Of* ofs[2] = {&call.one, &call.other};
  for (int index = 0; index <= second; ++index) {
    ofs[index]->y = y[index].floats();
    if (random.below(2)) ofs[index]->bias = biases[index].bytes.data(), ofs[index]->bias_kind = biases[index].kind;
  }
  if (adds) call.residual = residual.bytes.data(), call.residual_kind = residual.kind;
  call.out = out.bytes.data(), call.out_kind = inner;
  const Numbers x(random, Values::kF32, call.rows * inputs), codes(random, Values::kF32, 2 * call.size * inputs);
  if (multiplies) {
    Product products[2];
    for (int index = 0; index <= second; ++index) {
      Product& one = products[index];
      one.x.values = x.bytes.data(), one.x.rows = call.rows, one.x.inputs = inputs;
      one.weight.codes = codes.bytes.data() + index * call.size * inputs * 4;
      one.weight.outputs = one.weight.tile_rows = call.size, one.weight.inputs = one.weight.tile_columns = inputs;
      one.y = reinterpret_cast<float*>(y[index].bytes.data());
      one.with_last = index != 0;
    }
    products[0].finish = &call;
    active().multiply(products, 1 + second, pool);
  } else if (count) {
    const int64_t middle = random.below(call.size + 1);
    between().finish(call, 0, middle);
    between().finish(call, middle, call.size);
  }
  const double unit = inner == Values::kF32 ? 0x1p-23 : 0x1p-8;
  for (int64_t at = 0; at < count; ++at) {
    double sums[2], off[2];
    for (int index = 0; index <= second; ++index) {
      sums[index] = y[index].at(at) + (ofs[index]->bias ? biases[index].at(at % call.size) : 0.0);
      off[index] = unit * std::fabs(sums[index]);
    }
    double made = activated(call.activation, sums[0]), wrong = 1.2 * off[0] + unit * std::fabs(made) + 1e-6 * std::fabs(sums[0]);
    if (second) {
      wrong = wrong * std::fabs(sums[1]) + off[1] * std::fabs(made) + wrong * off[1];
      made *= sums[1];
    }
    wrong += unit * std::fabs(made);
    if (adds && residual.kind == Values::kBF16) wrong += 0x1p-8 * std::fabs(made);
    if (adds) made += residual.at(at);
    if (!close("what follows", out, at, made, 1e6 * wrong)) return false;
  }
  return true;
}

// The first of the largest, in buffers as long as what they hold.
bool check_argmax(Random& random, Pool& pool) {
  const int64_t rows = 1 + random.below(3), size = 1 + random.below(random.below(3) ? 90 : 40000);
  Numbers x(random, Values::kF32, rows * size);
  for (int64_t some = random.below(3); some > 0; --some)
    x.bytes.put<float>(random.below(rows * size), random.below(2) ? std::numeric_limits<float>::quiet_NaN() : 9.0f);
  std::vector<int32_t> found(static_cast<size_t>(rows));
  argmax(x.floats(), rows, size, found.data(), pool);
  for (int64_t row = 0; row < rows; ++row) {
    int64_t best = 0;
    for (int64_t at = 1; at < size && !std::isnan(x.at(row * size + best)); ++at)
      if (!(x.at(row * size + at) <= x.at(row * size + best))) best = at;
    if (found[static_cast<size_t>(row)] == best) continue;
    std::printf("argmax of %d: %d, not %d\n", static_cast<int>(size), found[static_cast<size_t>(row)], static_cast<int>(best));
    return false;
  }
  return true;
}

// Numbers that are drawn one by one.
template <class T>
struct Drawn {
  Bytes bytes;

  template <class Draw>
  Drawn(Random& random, int64_t count, const Draw& draw)
      : bytes(static_cast<size_t>(count) * sizeof(T), static_cast<size_t>(random.below(4)) * sizeof(T)) {
    for (int64_t at = 0; at < count; ++at) bytes.put<T>(at, static_cast<T>(draw()));
  }
  const T* data() const { return reinterpret_cast<const T*>(bytes.data()); }
};

// Random settings of some rows: each is given what it is given alone, which is none of the tokens that cannot be.
bool check_next_token(Random& random, Pool& pool) {
  const int64_t rows = 1 + random.below(4), size = 1 + random.below(random.below(3) ? 90 : 3000), steps = 1 + random.below(9);
  const int64_t prompts = 1 + random.below(9), slots = prompts + steps, length = prompts + random.below(steps + 1);
  const int64_t count = random.below(4), longest = 1 + random.below(4), stops = random.below(3);
  const auto token = [&] { return random.below(size < 5 ? size : 5); };
  const auto or_off = [&](double off, double low, double high) {
    return [&random, off, low, high] {
      const double part = static_cast<double>(random.below(1000)) / 1000;
      return random.below(2) ? off : low + (high - low) * part;
    };
  };
  const Drawn<float> logits(random, rows * size, [&] { return random.normal(); });
  const Drawn<int32_t> step(random, rows, [&] { return random.below(100); });
  const Drawn<float> floats[] = {
      {random, rows, or_off(0.0, 0.2, 2.0)}, {random, rows, or_off(1.0, 0.0, 1.0)}, {random, rows, or_off(0.0, 0.0, 1.0)},
      {random, rows, or_off(1.0, 0.0, 1.0)}, {random, rows, or_off(0.0, 0.0, 0.1)}, {random, rows, or_off(0.0, 0.0, 0.1)},
      {random, rows, or_off(1.0, 0.5, 2.0)}, {random, rows, or_off(0.0, -1., 1.0)}, {random, rows, or_off(0.0, -1., 1.0)}};
  const Drawn<int32_t> ints[] = {{random, rows, [&] { return random.below(2) ? 0 : random.below(size + 9); }},
                                 {random, rows, [&] { return random.below(4); }},
                                 {random, rows, [&] { return random.below(6); }},
                                 {random, rows, [&] { return random.below(12); }}};
  const Drawn<uint32_t> seed(random, rows, [&] { return random.below(1000); });
  const Drawn<float> bias(random, size, [&] { return random.normal(); });
  const Drawn<int32_t> tokens(random, rows * slots, token);
  const Drawn<int32_t> forced(random, steps, [&] { return random.below(3) ? -1 : token(); });
  const Drawn<int32_t> sequences(random, count * longest, [&] { return random.below(4) ? token() : -1; });
  const Drawn<int32_t> stop(random, stops, token);
  const uint8_t biased = random.below(2) != 0;
  const int32_t bos = random.below(2) ? -1 : static_cast<int32_t>(token());
  Bytes real(static_cast<size_t>(rows * slots), 0);
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t padding = random.below(prompts);
    for (int64_t slot = 0; slot < slots; ++slot) real.put<uint8_t>(row * slots + slot, slot >= padding && slot < length);
  }
  std::vector<int32_t> together(static_cast<size_t>(rows)), alone(static_cast<size_t>(rows));
  const bool history = random.below(3) != 0;
  const auto run = [&](int64_t first, int64_t last, int32_t* out) {
    NextToken call;
    Settings& settings = call.settings;
    call.logits = logits.data() + first * size, call.rows = last - first, call.vocabulary = size;
    call.step = step.data() + first;
    const float** to[] = {&settings.temperature, &settings.top_p, &settings.min_p, &settings.typical_p, &settings.epsilon,
                          &settings.eta, &settings.repetition, &settings.presence, &settings.frequency};
    for (size_t index = 0; index < 9; ++index) *to[index] = floats[index].data() + first;
    const int32_t** int_to[] = {&settings.top_k, &settings.ngram, &settings.min_new_tokens, &settings.min_length};
    for (size_t index = 0; index < 4; ++index) *int_to[index] = ints[index].data() + first;
    settings.seed = seed.data() + first;
    settings.biased = &biased, settings.bias = settings.first_bias = bias.data(), settings.forced_bos = &bos;
    settings.forced = forced.data(), settings.steps = steps;
    settings.sequences = sequences.data(), settings.sequence_count = count, settings.sequence_length = longest;
    settings.sequence_bias = logits.data(), settings.stop = stop.data(), settings.stop_count = stops;
    if (history) {
      call.tokens = tokens.data() + first * slots, call.real = real.data() + first * slots;
      call.slots = slots, call.prompt_slots = prompts, call.length = length;
    }
    call.out = out;
    next_tokens(call, pool);
  };
  run(0, rows, together.data());
  for (int64_t row = 0; row < rows; ++row) run(row, row + 1, alone.data() + row);
  bool right = together == alone;
  for (int64_t row = 0; row < rows; ++row) {
    const int32_t made = together[static_cast<size_t>(row)];
    right = right && made >= 0 && made < size;
    if (history || !right) continue;
    int64_t better = 0;
    for (int64_t at = 0; at < size; ++at) better += logits.data()[row * size + at] > logits.data()[row * size + made];
    const int64_t top_k = ints[0].data()[row], most = floats[0].data()[row] > 0.0f ? (top_k ? top_k : size) : 1;
    right = right && better < most;
  }
  if (!right) std::printf("the next token of %d is wrong\n", static_cast<int>(size));
  return right;
}

// Calls that follow each other twice are known; others are not.
bool check_ahead() {
  uint8_t weights[4][64];
  const auto call = [&](int index) {
    FirstBytes first[kFetchers];
    for (int thread = 0; thread < 2; ++thread) first[thread] = {weights[index] + 32 * thread, 32};
    begins(weights[index], first);
  };
  const auto comes = [&](int index, int64_t thread) { return read_next(thread).at == weights[index] + 32 * thread; };
  for (const int index : {0, 1, 2, 0}) call(index);
  bool right = !read_next(0).at && !read_next(kFetchers).at;
  for (const int index : {1, 2, 0}) call(index);
  right = right && comes(1, 0) && comes(1, 1) && read_next(1).count == 32 && !read_next(2).at;
  fetch_next(0);
  for (const int index : {3, 0}) call(index);  // 0 was followed by another one
  right = right && !read_next(0).at;
  for (const int index : {1, 2}) call(index);
  right = right && comes(0, 0);
  if (!right) std::puts("what is read next is wrong");
  return right;
}

}  // namespace
}  // namespace bombus

int main(int count, char** arguments) {
  using namespace bombus;
  if (count != 4) return 2;
  const uint64_t seed = std::strtoull(arguments[1], nullptr, 10);
  const int rounds = std::atoi(arguments[2]);
  Threads pool(std::atoi(arguments[3]));
  if (!check_ahead()) return 1;
  std::atomic<bool> right{true};
  std::atomic<int> left{rounds}, compared{0};
  // Two callers at the same time.
  const auto run = [&] {
    for (int round; right && (round = --left) >= 0; ++compared) {
      Random random{std::mt19937_64(seed * 1000003 + static_cast<uint64_t>(round))};
      if (!check_norm(random, pool) || !check_rotation(random, pool)) right = false;
      if (!check_finish(random, pool) || !check_argmax(random, pool) || !check_next_token(random, pool)) right = false;
    }
  };
  std::thread other(run);
  run();
  other.join();
  if (right) std::printf("plain %d products are right\n", compared.load());
  return right ? 0 : 1;
}
