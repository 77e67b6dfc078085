#include "running.h"

#include <vector>

#include "ahead.h"
#include "lines.h"
#include "parallel.h"

namespace bombus {

void run(const Product* products, int64_t count, Pool& pool, std::unique_ptr<Running> (*start)(const Product&),
         const Kernels* others) {
  constexpr int64_t kRows = 16;
  struct Part {
    Running *running, *second;
    int64_t first, last;
  };
  std::vector<std::unique_ptr<Running>> running;
  std::vector<Part> parts, rows;
  parts.reserve(64);
  std::vector<Product> left;
  const auto cut = [](std::vector<Part>& into, Running* one, Running* second, int64_t all, int64_t size) {
    for (int64_t first = 0; first < all; first += size)
      into.push_back({one, second, first, first + size < all ? first + size : all});
  };
  for (int64_t index = 0; index < count; ++index) {
    const Product &product = products[index], *second = index + 1 < count && products[index + 1].with_last ? &product + 1 : nullptr;
    index += second != nullptr;
    if (product.weight.outputs == 0 || product.x.rows == 0) continue;
    std::unique_ptr<Running> one = start(product), other = second ? start(*second) : nullptr;
    if (!one || (second && !other)) {
      left.push_back(product);
      if (second) left.push_back(*second);
      continue;
    }
    cut(parts, one.get(), other.get(), product.weight.outputs, one->outputs_of_a_part(pool.threads() + 1));
    for (std::unique_ptr<Running>* started : {&one, &other}) {
      if (!*started) continue;
      cut(rows, started->get(), nullptr, product.x.rows, kRows);
      running.push_back(std::move(*started));
    }
  }
  if (!left.empty()) others->multiply(left.data(), static_cast<int64_t>(left.size()), pool);
  const auto prepare = [&](int64_t index) { rows[index].running->prepare(rows[index].first, rows[index].last); };
  // To wake a thread for a few rows takes longer than they do.
  if (rows.size() <= running.size())
    for (size_t index = 0; index < rows.size(); ++index) prepare(static_cast<int64_t>(index));
  else
    parallel(pool, static_cast<int64_t>(rows.size()), prepare);
  const int64_t threads = pool.threads() + 1, some = static_cast<int64_t>(parts.size());
  if (some >= threads && parts[0].running->product.x.rows <= kStreamRows) {
    FirstBytes first[kFetchers];
    for (int64_t thread = 0; thread < threads && thread < kFetchers; ++thread) {
      const Part& part = parts[static_cast<size_t>(first_part(some, thread, threads))];
      const Matrix& weight = part.running->product.weight;
      const int64_t bytes = (weight.outputs - part.first) * weight.row_bytes();
      first[thread] = {weight.codes + part.first * weight.row_bytes(), bytes < kFetchedBytes ? bytes : kFetchedBytes};
    }
    begins(parts[0].running->product.weight.codes, first);
  }
  void (*const finish)(const Finish&, int64_t, int64_t) = between().finish;
  parallel(pool, some, [&](int64_t index) {
    const Part& part = parts[index];
    if (part.second) {
      // Reading goes on elsewhere after the first.
      const Matrix& weight = part.second->product.weight;
      const uint8_t* codes = weight.codes + part.first * weight.row_bytes();
      for (int64_t byte = 0; byte < kAhead; byte += kCacheLine) __builtin_prefetch(codes + byte);
    }
    part.running->part(part.first, part.last);
    if (part.second) part.second->part(part.first, part.last);
    if (part.running->product.finish) finish(*part.running->product.finish, part.first, part.last);
  });
}

}  // namespace bombus
