// How what is done to rows is cut into parts: these rows are in the caches, and short beside the weights.
#include "rows.h"

#include <vector>

#include "parallel.h"

namespace bombus {
namespace {

constexpr int64_t kValuesOfPart = 1 << 15;  // fewer are done before another thread is awake

// run(call, first, last) for all rows, in parts of several where they are many.
template <class Call>
void for_rows(void (*run)(const Call&, int64_t, int64_t), const Call& call, int64_t rows, int64_t size, Pool& pool) {
  if (rows * size == 0) return;
  const int64_t part = size >= kValuesOfPart ? 1 : kValuesOfPart / size;
  parallel(pool, (rows + part - 1) / part, [&](int64_t index) {
    run(call, index * part, (index + 1) * part < rows ? (index + 1) * part : rows);
  });
}

}  // namespace

void rms_norm(const Norm& call, Pool& pool) { for_rows(between().norm, call, call.rows, call.size, pool); }

void rotate(const Rotation& call, Pool& pool) {
  for_rows(between().rotate, call, call.tokens * call.heads, call.size, pool);
}

void argmax(const float* x, int64_t rows, int64_t size, int32_t* out, Pool& pool) {
  constexpr int64_t kPart = kValuesOfPart / 2;
  struct Found {
    int64_t index;
    float largest;
  };
  const int64_t of_row = (size + kPart - 1) / kPart;
  std::vector<Found> found(static_cast<size_t>(rows * of_row));
  parallel(pool, rows * of_row, [&](int64_t part) {
    const int64_t first = part % of_row * kPart, count = size - first < kPart ? size - first : kPart;
    Found& here = found[static_cast<size_t>(part)];
    here.index = first + between().argmax(x + part / of_row * size + first, count, &here.largest);
  });
  for (int64_t row = 0; row < rows; ++row) {
    const Found* best = found.data() + row * of_row;
    for (const Found *next = best + 1, *end = best + of_row; next < end && best->largest == best->largest; ++next)
      if (!(next->largest <= best->largest)) best = next;
    out[row] = static_cast<int32_t>(best->index);
  }
}

}  // namespace bombus
