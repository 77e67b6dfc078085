// How a token is drawn from the logits of a row.
#include "next_token.h"

#include <vector>

#include "candidates.h"
#include "numbers.h"
#include "parallel.h"
#include "processors.h"
#include "rows.h"

namespace bombus {
namespace {

// Threefry-2x32 of 20 rounds (Salmon et al. 2011), the generator of jax.random.
struct Words {
  uint32_t one, other;
};
Words threefry(Words key, Words x) {
  constexpr int kRotations[2][4] = {{13, 15, 26, 6}, {17, 29, 16, 24}};
  const uint32_t keys[3] = {key.one, key.other, key.one ^ key.other ^ 0x1bd11bdau};
  x = {x.one + keys[0], x.other + keys[1]};
  for (uint32_t group = 0; group < 5; ++group) {
    for (const int by : kRotations[group % 2]) {
      x.one += x.other;
      x.other = (x.other << by | x.other >> (32 - by)) ^ x.one;
    }
    x.one += keys[(group + 1) % 3];
    x.other += keys[(group + 2) % 3] + group + 1;
  }
  return x;
}

// The `index`-th of jax.random.uniform(jax.random.fold_in(jax.random.key(seed), step), ...).
float uniform(uint32_t seed, uint32_t step, uint32_t index) {
  const Words bits = threefry(threefry({0, seed}, {0, step}), {0, index});
  return from_bits((bits.one ^ bits.other) >> 9 | 0x3f800000u) - 1.0f;
}

int32_t drawn(const NextToken& call, int64_t row, const float* logits) {
  const Settings& settings = call.settings;
  Candidates candidates(logits, call.vocabulary, settings.top_k[row], settings.temperature[row]);
  if (!candidates.usable()) return 0;
  candidates.keep_top_p(settings.top_p[row]);
  candidates.keep_min_p(settings.min_p[row]);
  candidates.keep_typical_p(settings.typical_p[row]);
  candidates.cut_epsilon(settings.epsilon[row]);
  candidates.cut_eta(settings.eta[row]);
  const uint32_t seed = settings.seed[row], step = static_cast<uint32_t>(call.step[row]);
  return candidates.draw(uniform(seed, step, 0), uniform(seed, step, 1));
}

}  // namespace

void next_tokens(const NextToken& call, Pool& pool) {
  std::vector<Row> rows;
  for (int64_t row = 0; row < call.rows; ++row) rows.emplace_back(call, row);
  const auto sampled = [&](int64_t row) { return call.settings.temperature[row] > 0.0f; };
  parallel(pool, call.rows, [&](int64_t row) {
    Row& own = rows[static_cast<size_t>(row)];
    own.process();
    if (sampled(row)) call.out[row] = drawn(call, row, own.logits());
  });
  for (int64_t row = 0; row < call.rows; ++row)
    if (!sampled(row)) argmax(rows[static_cast<size_t>(row)].logits(), 1, call.vocabulary, call.out + row, pool);
}

}  // namespace bombus
