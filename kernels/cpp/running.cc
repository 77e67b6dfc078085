#include "running.h"

#include <vector>

#include "parallel.h"

namespace bombus {

void run(const Product* products, int64_t count, Pool& pool, std::unique_ptr<Running> (*start)(const Product&),
         const Kernels* others) {
  constexpr int64_t kRows = 16;
  struct Part {
    Running* running;
    int64_t first, last;
  };
  std::vector<std::unique_ptr<Running>> running;
  std::vector<Part> parts, rows;
  std::vector<Product> left;
  const auto cut = [](std::vector<Part>& into, Running* one, int64_t all, int64_t size) {
    for (int64_t first = 0; first < all; first += size) into.push_back({one, first, first + size < all ? first + size : all});
  };
  for (int64_t index = 0; index < count; ++index) {
    const Product& product = products[index];
    if (product.weight.outputs == 0 || product.x.rows == 0) continue;
    std::unique_ptr<Running> one = start(product);
    if (!one) {
      left.push_back(product);
      continue;
    }
    cut(parts, one.get(), product.weight.outputs, one->outputs_of_a_part(pool.threads() + 1));
    cut(rows, one.get(), product.x.rows, kRows);
    running.push_back(std::move(one));
  }
  if (!left.empty()) others->multiply(left.data(), static_cast<int64_t>(left.size()), pool);
  const auto prepare = [&](int64_t index) { rows[index].running->prepare(rows[index].first, rows[index].last); };
  // To wake a thread for a few rows takes longer than they do.
  if (rows.size() <= running.size())
    for (size_t index = 0; index < rows.size(); ++index) prepare(static_cast<int64_t>(index));
  else
    parallel(pool, static_cast<int64_t>(rows.size()), prepare);
  parallel(pool, static_cast<int64_t>(parts.size()),
           [&](int64_t index) { parts[index].running->part(parts[index].first, parts[index].last); });
}

}  // namespace bombus
