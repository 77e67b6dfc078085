// Products that are under way: what runs their parts on all threads.
#pragma once

#include <cstdint>
#include <memory>

#include "kernels.h"

namespace bombus {

constexpr int64_t kStreamRows = 8;  // of x, for which it is memory that takes the time; beyond that strips are faster

// A product that is under way: its rows of x are prepared, 16 at a time and in turn; then the parts of y are computed.
class Running {
 public:
  virtual ~Running() = default;
  virtual void prepare(int64_t first, int64_t last) = 0;
  virtual int64_t outputs_of_a_part(int64_t threads) const = 0;
  virtual void part(int64_t first, int64_t last) = 0;
  const Product& product;

 protected:
  explicit Running(const Product& product) : product(product) {}
};

// Runs each product with what `start` returns for it, or with other kernels (null: there are none) where that is null.
void run(const Product* products, int64_t count, Pool& pool, std::unique_ptr<Running> (*start)(const Product&),
         const Kernels* others);

}  // namespace bombus
