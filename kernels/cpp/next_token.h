// The next token of each row: what generation/processors.py, filters.py and sampling.py do to its logits, in one call.
#pragma once

#include <cstdint>
#include <limits>

#include "kernels.h"

namespace bombus {

constexpr float kNever = -std::numeric_limits<float>::infinity();  // of a token that must not come

// The arrays of Sampling (generation/sampling.py): those of rows (R,), and those that all rows share.
struct Settings {
  const float *temperature = nullptr, *top_p = nullptr, *min_p = nullptr, *typical_p = nullptr, *epsilon = nullptr,
              *eta = nullptr, *repetition = nullptr, *presence = nullptr, *frequency = nullptr;
  const int32_t *top_k = nullptr, *ngram = nullptr, *min_new_tokens = nullptr, *min_length = nullptr;
  const uint32_t* seed = nullptr;
  const uint8_t* biased = nullptr;                       // one: whether any of `bias` is not zero
  const float *bias = nullptr, *first_bias = nullptr;    // (V,)
  const int32_t *forced = nullptr, *forced_bos = nullptr;  // (steps,) and one
  const int32_t* sequences = nullptr;                    // (count, length), right-aligned after -1
  const float* sequence_bias = nullptr;
  const int32_t* stop = nullptr;
  int64_t steps = 0, sequence_count = 0, sequence_length = 0, stop_count = 0;
};

// logits (R, V). What a row has read and written, where it matters: tokens and which of them are real (R, slots), of which
// `length` are used, prompt_slots of them by prompts. step (R,): what each row's draw depends on, beside its seed.
struct NextToken {
  const float* logits = nullptr;
  int64_t rows = 0, vocabulary = 0;
  const int32_t* step = nullptr;
  Settings settings;
  const int32_t* tokens = nullptr;
  const uint8_t* real = nullptr;
  int64_t slots = 0, prompt_slots = 0, length = 0;
  int32_t* out = nullptr;
};
void next_tokens(const NextToken& call, Pool& pool);

}  // namespace bombus
