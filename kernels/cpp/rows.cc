// How what is done to rows is cut into parts: these rows are in the caches, and short beside the weights.
#include "rows.h"

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

}  // namespace bombus
