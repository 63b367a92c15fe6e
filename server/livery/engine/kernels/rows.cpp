// The row kernels, and as calls of their own with the rows shared out among threads.
#include "rows.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "team.hpp"
#include "vec.hpp"

namespace livery {

constexpr int64_t kSerialValues = 64 * 1024;  // values below which waking threads costs more

__attribute__((noinline)) void rms_norm_row(float* x, const float* added, const float* weight, float eps, int64_t d,
                                            float* y) {
  const int64_t whole = d / kLanes * kLanes, rest = d - whole;
  Vec squares{};
  for (int64_t i = 0; i < whole; i += kLanes) {
    Vec v = load(x + i);
    if (added) store(x + i, v += load(added + i));
    squares += v * v;
  }
  if (rest) {
    Vec v = load_first(x + whole, rest);
    if (added) store_first(x + whole, v += load_first(added + whole, rest), rest);
    squares += v * v;
  }
  const float gain = 1.0f / std::sqrt(sum_lanes(squares) / static_cast<float>(d) + eps);
  for (int64_t i = 0; i < whole; i += kLanes) store(y + i, load(x + i) * gain * load(weight + i));
  if (rest) store_first(y + whole, load_first(x + whole, rest) * gain * load_first(weight + whole, rest), rest);
}

static void rotate(float* x, const float* cos, const float* sin, int64_t half) {
  int64_t i = 0;
  for (; i + kLanes <= half; i += kLanes) {
    const Vec a = load(x + i), b = load(x + half + i), c = load(cos + i), s = load(sin + i);
    store(x + i, a * c - b * s);
    store(x + half + i, b * c + a * s);
  }
  if (const int64_t rest = half - i; rest > 0) {
    const Vec a = load_first(x + i, rest), b = load_first(x + half + i, rest);
    const Vec c = load_first(cos + i, rest), s = load_first(sin + i, rest);
    store_first(x + i, a * c - b * s, rest);
    store_first(x + half + i, b * c + a * s, rest);
  }
}

__attribute__((noinline)) void rope_row(const RopeRow& row) {
  const int64_t half = row.dim / 2;
  for (int64_t head = 0; head < row.heads; ++head) rotate(row.q + head * row.dim, row.cos, row.sin, half);
  for (int64_t head = 0; head < row.kv_heads; ++head) rotate(row.k + head * row.dim, row.cos, row.sin, half);
  std::memcpy(row.k_slot, row.k, row.kv_heads * row.dim * sizeof(float));
  std::memcpy(row.v_slot, row.v, row.kv_heads * row.v_dim * sizeof(float));
}

// x / (1 + e^-x), from e^-|x| so that nothing overflows.
static Vec silu(Vec x) {
  const Vec size = x < 0.0f ? -x : x;
  const Vec e = exp_nonpositive(-size);
  return x * ((x < 0.0f ? e : splat(1.0f)) / (1.0f + e));
}

__attribute__((noinline)) void silu_mul_row(const float* gate_up, int64_t f, int64_t begin, int64_t end, float* y) {
  int64_t i = begin;
  for (; i + kLanes <= end; i += kLanes) store(y + i, silu(load(gate_up + i)) * load(gate_up + f + i));
  if (const int64_t rest = end - i; rest > 0)
    store_first(y + i, silu(load_first(gate_up + i, rest)) * load_first(gate_up + f + i, rest), rest);
}

__attribute__((noinline)) static void scale_row(float* y, const float* gain, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] *= gain[i];
}

void affine_row(float* y, const float* gain, const float* shift, int64_t n) {
  if (gain) scale_row(y, gain, n);
  if (shift)
    for (int64_t i = 0; i < n; ++i) y[i] += shift[i];
}

// Calls f(row) for every row, by as many threads as `values` in all are worth.
template <class F>
static void each_row(int64_t rows, int64_t values, const F& f) {
  in_team(values < kSerialValues ? 1 : omp_get_max_threads(), [&] {
#pragma omp for schedule(static) nowait
    for (int64_t row = 0; row < rows; ++row) f(row);
  });
}

// Mirrored by native_rows.py.
struct RopeCall {
  float *q, *k;
  const float* v;
  int64_t q_row, k_row, v_row;  // strides
  const float *cos, *sin;       // [rows, dim / 2]
  const int64_t* slots;
  float *k_cache, *v_cache;
  int64_t rows, heads, kv_heads, dim, v_dim, capacity;  // slots that the cache has
};

}  // namespace livery

// x [rows, heads, d] with strides for rows and heads, added [rows, d] with one for rows or null, y contiguous.
extern "C" void livery_rms_norm(float* x, int64_t x_row, int64_t x_head, const float* added, int64_t added_row,
                                const float* weight, float eps, int64_t rows, int64_t heads, int64_t d, float* y) {
  livery::each_row(rows, rows * heads * d, [&](int64_t row) {
    const float* more = added ? added + row * added_row : nullptr;
    for (int64_t head = 0; head < heads; ++head)
      livery::rms_norm_row(x + row * x_row + head * x_head, more, weight, eps, d, y + (row * heads + head) * d);
  });
}

// Returns the first row whose slot the cache hasn't, or -1; nothing is written then.
extern "C" int64_t livery_rope(const livery::RopeCall* call) {
  const livery::RopeCall& c = *call;
  for (int64_t row = 0; row < c.rows; ++row)
    if (c.slots[row] < 0 || c.slots[row] >= c.capacity) return row;
  const int64_t half = c.dim / 2;
  livery::each_row(c.rows, c.rows * (c.heads + 2 * c.kv_heads) * c.dim, [&](int64_t row) {
    livery::rope_row({c.q + row * c.q_row, c.k + row * c.k_row, c.v + row * c.v_row, c.cos + row * half,
                      c.sin + row * half, c.k_cache + c.slots[row] * c.kv_heads * c.dim,
                      c.v_cache + c.slots[row] * c.kv_heads * c.v_dim, c.heads, c.kv_heads, c.dim, c.v_dim});
  });
  return -1;
}

// gate_up [rows, 2 f] with a stride for rows -> y [rows, f] contiguous.
extern "C" void livery_silu_mul(const float* gate_up, int64_t stride, int64_t rows, int64_t f, float* y) {
  livery::each_row(rows, rows * f * 4, [&](int64_t row) {
    livery::silu_mul_row(gate_up + row * stride, f, 0, f, y + row * f);
  });
}
