// The tokens of a row that may come next, as generation/filters.py leaves them, and a draw of one.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <vector>

#include "next_token.h"

namespace bombus {

// A number that is in the order of the value; the two zeros are one.
inline uint32_t in_order(float value) {
  uint32_t bits;
  value += 0.0f;  // -0 becomes 0
  std::memcpy(&bits, &value, sizeof bits);
  // Without a branch: which sign comes next nobody knows.
  return bits ^ ((0u - (bits >> 31)) | 0x80000000u);
}

// The largest number for which the weights of the values that are not below it reach `wanted`; 0 where none is.
//
// Found by eleven bits at a time, from how much weight there is of each: a sort would take several times as long. Four sums
// of each, in turn, as most values have a few of these bits in common, and one sum would wait for the one before.
inline uint32_t threshold(const float* values, const float* weights, int64_t count, double wanted) {
  constexpr int kBits = 11;
  constexpr size_t kSums = 4;
  uint32_t found = 0;
  double above = 0.0;
  for (int last = 32; last > 0;) {
    const int bits = last < kBits ? last : kBits, shift = last - bits;
    std::vector<double> sums(kSums << bits);
    const uint64_t known = uint64_t(found) >> last, mask = (uint64_t(1) << bits) - 1;
    for (int64_t index = 0; index < count; ++index) {
      const uint64_t number = in_order(values[index]);
      const size_t place = (number >> shift & mask) * kSums + static_cast<size_t>(index) % kSums;
      if (number >> last == known) sums[place] += static_cast<double>(weights[index]);
    }
    size_t bucket = mask;
    for (; bucket > 0; --bucket) {
      const double* here = sums.data() + bucket * kSums;
      const double with = above + ((here[0] + here[1]) + (here[2] + here[3]));
      if (with >= wanted) break;
      above = with;
    }
    found |= static_cast<uint32_t>(bucket) << shift;
    last = shift;
  }
  return found;
}

// Where the `wanted` largest values are, and those that equal the last of them; or the first that is no number.
//
// No more than those of the blocks whose largest ones are among the largest are looked at.
inline void find_largest(const float* values, int64_t count, int64_t wanted, std::vector<int32_t>& ids) {
  constexpr int64_t kBlock = 64;
  std::vector<float> largest(static_cast<size_t>((count + kBlock - 1) / kBlock));
  for (size_t block = 0; block < largest.size(); ++block) {
    const int64_t first = static_cast<int64_t>(block) * kBlock;
    const int64_t best = between().argmax(values + first, std::min(kBlock, count - first), &largest[block]);
    if (std::isnan(largest[block])) return ids.push_back(static_cast<int32_t>(first + best));
  }
  const auto at_place = [](std::vector<float>& some, int64_t place) {
    std::nth_element(some.begin(), some.begin() + place, some.end(), std::greater<float>());
    return some[static_cast<size_t>(place)];
  };
  std::vector<float> sorted = largest;
  const float bound = wanted <= static_cast<int64_t>(sorted.size()) ? at_place(sorted, wanted - 1) : kNever;
  const auto each = [&](float least, const auto& body) {
    for (size_t block = 0; block < largest.size(); ++block) {
      if (largest[block] < least) continue;
      const int64_t first = static_cast<int64_t>(block) * kBlock, end = std::min(first + kBlock, count);
      for (int64_t at = first; at < end; ++at)
        if (values[at] >= least) body(at);
    }
  };
  std::vector<float> some;
  each(bound, [&](int64_t at) { some.push_back(values[at]); });
  const float least = at_place(some, wanted - 1);
  each(least, [&](int64_t at) { ids.push_back(static_cast<int32_t>(at)); });
}

// The tokens that one row may be given, by their numbers, and their logits over the temperature.
class Candidates {
 public:
  Candidates(const float* logits, int64_t vocabulary, int64_t top_k, float temperature) : vocabulary_(vocabulary) {
    std::vector<int32_t> best;
    const bool all = top_k < 1 || top_k >= vocabulary;
    if (!all) find_largest(logits, vocabulary, top_k, best);
    count_ = all ? vocabulary : static_cast<int64_t>(best.size());
    // One piece of memory: several that are as large would be given back to the system, and fetched again, at every token.
    room_.reset(new float[static_cast<size_t>(3 * count_)]);
    ids_.reset(new int32_t[static_cast<size_t>(count_)]);
    values_ = room_.get();
    weights_ = values_ + count_;
    for (int64_t at = 0; at < count_; ++at) ids_[at] = static_cast<int32_t>(at);
    std::copy(best.begin(), best.end(), ids_.get());
    for (int64_t at = 0; at < count_; ++at) values_[at] = logits[all ? at : ids_[at]] / temperature;
  }

  // Whether the largest of them is a number.
  bool usable() {
    between().argmax(values_, count_, &largest_);
    return std::isfinite(largest_);
  }

  void keep_top_p(float top_p) {
    if (!(top_p < 1.0f)) return;
    weigh();
    // No mass at all is reached by no token: the best one stays.
    const double wanted = std::max(top_p, std::numeric_limits<float>::min());
    const uint32_t least = threshold(values_, weights_, count_, wanted);
    keep([&](int64_t at) { return in_order(values_[at]) >= least; });
  }

  void keep_min_p(float min_p) {
    if (!(min_p > 0.0f)) return;
    weigh();
    const float least = min_p * *std::max_element(weights_, weights_ + count_);
    keep([&](int64_t at) { return weights_[at] >= least; });
  }

  void keep_typical_p(float typical_p) {
    if (!(typical_p < 1.0f)) return;
    weigh();
    const float entropy = this->entropy();
    float* near = weights_ + count_;
    for (int64_t at = 0; at < count_; ++at) near[at] = -std::fabs(log_weight(at) + entropy);
    const uint32_t least = threshold(near, weights_, count_, static_cast<double>(typical_p));
    keep([&](int64_t at) { return in_order(near[at]) >= least; });
    usable();  // the best one may be gone
  }

  void cut_epsilon(float epsilon) {
    if (!(epsilon > 0.0f)) return;
    weigh();
    keep([&](int64_t at) { return weights_[at] >= epsilon; });
  }

  void cut_eta(float epsilon) {
    if (!(epsilon > 0.0f)) return;
    weigh();
    cut_epsilon(std::min(epsilon, std::sqrt(epsilon) * std::exp(-entropy())));
  }

  // By two numbers from 0 to 1: the block of the vocabulary, then the token in it.
  int32_t draw(float of_block, float of_token) {
    int64_t size = 1;
    while (size * size * 2 <= vocabulary_) size *= 2;
    std::vector<double> sums(static_cast<size_t>((vocabulary_ + size - 1) / size));
    std::vector<int64_t> firsts;
    int64_t first = 0;
    for (double& sum : sums) {
      firsts.push_back(first);
      const int32_t* begin = ids_.get();
      const int64_t last = static_cast<int64_t>(firsts.size()) * size;
      const int64_t end = std::lower_bound(begin + first, begin + std::min(first + size, count_), last) - begin;
      sum = between().exponentials(values_ + first, end - first, largest_, weights_ + first);
      first = end;
    }
    firsts.push_back(count_);
    const size_t block = static_cast<size_t>(pick(sums.data(), static_cast<int64_t>(sums.size()), of_block));
    first = firsts[block];
    return ids_[first + pick(weights_ + first, firsts[block + 1] - first, of_token)];
  }

 private:
  // The probabilities of what is left.
  void weigh() {
    const float sum = static_cast<float>(between().exponentials(values_, count_, largest_, weights_));
    for (int64_t at = 0; at < count_; ++at) weights_[at] /= sum;
    log_sum_ = std::log(sum);
  }

  float log_weight(int64_t at) const { return values_[at] - largest_ - log_sum_; }

  float entropy() const {
    double sum = 0.0;
    for (int64_t at = 0; at < count_; ++at)
      if (weights_[at] > 0.0f) sum -= static_cast<double>(weights_[at]) * static_cast<double>(log_weight(at));
    return static_cast<float>(sum);
  }

  // Leaves those that kept(at) is true of; the best ones, where it is true of none.
  template <class Kept>
  void keep(const Kept& kept) {
    int64_t left = 0;
    const auto keep_where = [&](const auto& kept) {
      for (int64_t at = 0; at < count_; ++at) {
        values_[left] = values_[at];
        ids_[left] = ids_[at];
        left += kept(at);
      }
    };
    const float value = values_[0];
    const int32_t id = ids_[0];
    keep_where(kept);
    if (left == 0) {
      values_[0] = value;  // written over
      ids_[0] = id;
      keep_where([&](int64_t at) { return values_[at] == largest_; });
    }
    count_ = left;
  }

  // Drawn by weight; never one of weight 0.
  template <class T>
  static int64_t pick(const T* weights, int64_t count, float number) {
    double total = 0.0, sum = 0.0;
    for (int64_t at = 0; at < count; ++at) total += static_cast<double>(weights[at]);
    for (int64_t at = 0; at < count; ++at) {
      sum += static_cast<double>(weights[at]);
      if (weights[at] > 0 && sum > static_cast<double>(number) * total) return at;
    }
    return 0;
  }

  int64_t vocabulary_, count_ = 0;
  std::unique_ptr<float[]> room_;
  std::unique_ptr<int32_t[]> ids_;  // ascending
  float *values_, *weights_;
  float largest_ = 0.0f, log_sum_ = 0.0f;
};

}  // namespace bombus
