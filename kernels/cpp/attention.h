// Attention to keys and values as a cache stores them.
//
// Shapes: B rows of a batch, T tokens, N query heads, K key/value heads, X = B * K, S slots, H and V sizes of a key and of
// a value, R = N / K * T query rows that share a key/value head: the tokens of its first query head, of the second...
#pragma once

#include <cstdint>

#include "kernels.h"

namespace bombus {

// Keys or values (X, S, H). Codes stand for code * scale + zero. A byte of int4 holds dimension h in its low half and
// h + H / 2 in its high half.
struct Vectors {
  const uint8_t* codes = nullptr;
  Codes kind = Codes::kF32;
  const float* scale = nullptr;  // (X, S), or (X,)
  bool scale_of_head = false;    // whether it is (X,)
  const float* zero = nullptr;   // (X, S)
  int64_t size = 0;              // H

  int64_t row_bytes() const {
    return kind == Codes::kF32 ? size * 4 : kind == Codes::kBF16 || kind == Codes::kF16 ? size * 2 : kind == Codes::kInt4 ? size / 2 : size;
  }
};

// What queries read, and which slots of it each token sees: mask (B, T, S).
struct Source {
  Vectors keys, values;
  const uint8_t* mask = nullptr;
  int64_t slots = 0;
};

// softmax(softcap(q k * scale)) v over all sources, of q (B, T, N, H) as out (B, T, N, V). Of the T tokens, a call may be
// about `tokens` only, from first_token on.
struct Attention {
  const Source* sources = nullptr;
  int64_t count = 0;
  const void* q = nullptr;
  Values q_kind = Values::kF32;
  int64_t batch = 0, all_tokens = 0, first_token = 0, tokens = 0, heads = 0, kv_heads = 0, key_size = 0, value_size = 0;
  float scale = 1.0f;
  float softcap = 0.0f;          // 0: none
  const float* sinks = nullptr;  // (N,), one more score of each head, whose weight goes nowhere
  void* out = nullptr;
  Values out_kind = Values::kF32;  // or bfloat16

  int64_t rows() const { return heads / kv_heads * tokens; }
  // Where a token is among those of all rows of the batch.
  int64_t place(int64_t row, int64_t token) const { return row * all_tokens + first_token + token; }
};

// Slots of a block: with many queries what these hold is decoded, or put into another order, once.
constexpr int64_t kSlots = 64;

// Scores of many queries of bfloat16 with keys of bfloat16, which need not be decoded where pairs of them are multiplied.
struct PairedScores {
  // The rows of a block, of `size` numbers, as `score` takes them. `out` has room for 32 numbers where one is left.
  void (*turn)(const uint8_t* const* rows, int64_t size, uint16_t* out);
  // Of q (queries, stride), of an even stride with zeros behind `size`, with as many slots as each reaches: (queries, kSlots).
  void (*score)(const uint16_t* keys, const int32_t* reach, const uint16_t* q, int64_t stride, int64_t queries,
                float* out);
};

// Slots that some token sees, of one source.
struct Seen {
  const int32_t* slots = nullptr;
  int64_t count = 0;
};

// Some of what the queries of one key/value head see. What comes out for each of them: the largest score, the sum of
// exp(score - largest), and the values mixed with these weights.
struct AttentionPart {
  const Attention* call = nullptr;
  int64_t head = 0;            // of X
  const Seen* seen = nullptr;  // for each source
  const PairedScores* pairs = nullptr;  // where there are any
  float* largest = nullptr;    // (R,)
  float* sum = nullptr;        // (R,)
  float* mixed = nullptr;      // (R, V)
};

// Runs a call on the kernels in use. A query that sees nothing gets zeros.
void attend(const Attention& call, Pool& pool);

}  // namespace bombus
