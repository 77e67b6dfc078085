// What changes the logits of a row before a token is chosen; generation/processors.py says what each of these means.
#pragma once

#include <cstring>
#include <memory>
#include <vector>

#include "next_token.h"

namespace bombus {

// A row of a call: its logits are those that were given until something changes them, and a copy from then on.
class Row {
 public:
  Row(const NextToken& call, int64_t row)
      : call_(call), settings_(call.settings), row_(row), logits_(call.logits + row * call.vocabulary),
        tokens_(call.tokens + row * call.slots), real_(call.real + row * call.slots) {}

  const float* logits() const { return logits_; }

  void process() {
    if (!call_.tokens) return;
    bias_tokens();
    bias_sequences();
    penalize_repetition();
    penalize_new_tokens();
    ban_repeated_ngrams();
    put_off_stop();
    bias_first();
    force();
  }

 private:
  float* changed() {
    if (!copy_) {
      copy_.reset(new float[static_cast<size_t>(call_.vocabulary)]);
      std::memcpy(copy_.get(), logits_, static_cast<size_t>(call_.vocabulary) * sizeof(float));
      logits_ = copy_.get();
    }
    return copy_.get();
  }

  bool known(int64_t token) const { return token >= 0 && token < call_.vocabulary; }

  // body(token) for the row's tokens from a slot on.
  template <class Body>
  void each_token(int64_t first, const Body& body) const {
    for (int64_t slot = first; slot < call_.slots; ++slot)
      if (real_[slot] && known(tokens_[slot])) body(tokens_[slot]);
  }

  int64_t step() const { return call_.length - call_.prompt_slots; }

  int64_t prompt_length() const {
    int64_t length = 0;
    for (int64_t slot = 0; slot < call_.prompt_slots; ++slot) length += real_[slot] != 0;
    return length;
  }

  void add(const float* bias) {
    float* logits = changed();
    for (int64_t token = 0; token < call_.vocabulary; ++token) logits[token] += bias[token];
  }

  void bias_tokens() {
    if (*settings_.biased) add(settings_.bias);
  }

  void bias_sequences() {
    const int64_t before = settings_.sequence_length - 1;
    for (int64_t index = 0; index < settings_.sequence_count; ++index) {
      const int32_t* sequence = settings_.sequences + index * settings_.sequence_length;
      if (!known(sequence[before])) continue;
      bool matches = true;
      for (int64_t at = 0; matches && at < before; ++at) {
        const int64_t slot = call_.length - before + at;
        matches = sequence[at] < 0 || (slot >= 0 && real_[slot] && tokens_[slot] == sequence[at]);
      }
      if (matches) changed()[sequence[before]] += settings_.sequence_bias[index];
    }
  }

  void penalize_repetition() {
    const float penalty = settings_.repetition[row_];
    if (penalty == 1.0f) return;
    float* logits = changed();
    std::vector<bool> seen(static_cast<size_t>(call_.vocabulary));
    each_token(0, [&](int32_t token) {
      if (seen[static_cast<size_t>(token)]) return;
      seen[static_cast<size_t>(token)] = true;
      logits[token] = logits[token] < 0.0f ? logits[token] * penalty : logits[token] / penalty;
    });
  }

  void penalize_new_tokens() {
    const float presence = settings_.presence[row_], frequency = settings_.frequency[row_];
    if (presence == 0.0f && frequency == 0.0f) return;
    float* logits = changed();
    std::vector<int32_t> counts(static_cast<size_t>(call_.vocabulary));
    each_token(call_.prompt_slots, [&](int32_t token) { ++counts[static_cast<size_t>(token)]; });
    each_token(call_.prompt_slots, [&](int32_t token) {
      int32_t& count = counts[static_cast<size_t>(token)];
      if (count) logits[token] = logits[token] - frequency * static_cast<float>(count) - presence;
      count = 0;
    });
  }

  void ban_repeated_ngrams() {
    const int64_t size = settings_.ngram[row_];
    if (size < 1) return;
    for (int64_t slot = 0; slot < call_.slots; ++slot) {
      bool ends = real_[slot] && known(tokens_[slot]);
      for (int64_t back = 1; ends && back < size; ++back) {
        const int64_t last = call_.length - back, here = slot - back;
        ends = last >= 0 && real_[last] && here >= 0 && real_[here] && tokens_[here] == tokens_[last];
      }
      if (ends) changed()[tokens_[slot]] = kNever;
    }
  }

  void put_off_stop() {
    const int64_t least = settings_.min_length[row_];
    if (step() >= settings_.min_new_tokens[row_] && (least <= step() || prompt_length() + step() >= least)) return;
    for (int64_t index = 0; index < settings_.stop_count; ++index)
      if (known(settings_.stop[index])) changed()[settings_.stop[index]] = kNever;
  }

  void bias_first() {
    if (step() > 1) return;
    const int64_t first = *settings_.forced_bos >= 0 && prompt_length() == 1;
    if (step() == first) add(settings_.first_bias);
  }

  void force() {
    int64_t forced = step() < settings_.steps ? settings_.forced[step()] : -1;
    if (forced < 0 && step() == 0 && prompt_length() == 1) forced = *settings_.forced_bos;
    if (forced < 0) return;
    float* logits = changed();
    for (int64_t token = 0; token < call_.vocabulary; ++token) logits[token] = token == forced ? 0.0f : kNever;
  }

  const NextToken& call_;
  const Settings& settings_;
  int64_t row_;
  const float* logits_;
  const int32_t* tokens_;
  const uint8_t* real_;
  std::unique_ptr<float[]> copy_;
};

}  // namespace bombus
