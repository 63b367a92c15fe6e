// Attention over a paged KV cache for any number of sequences with any number of query tokens each.
//
// One item is a block of queries of one sequence times one KV head, with all query heads that share it, so
// that each key and value is read once per item. The context is walked in chunks with a running maximum and
// sum. Slots past a sequence's context are never read: they may hold another request's values.
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "tiles.hpp"

namespace livery {

constexpr int64_t kChunk = 64;        // tokens of context per step
constexpr int64_t kBlockQueries = 8;  // query tokens per item
constexpr int64_t kSerialScores = 8 * 1024;

struct Paged {
  const float* q;
  int64_t q_row, q_head;  // strides
  const float *k, *v;
  const int32_t* tables;
  int64_t table_row;
  const int32_t* starts;  // first query row of each sequence and the end; null: one row each
  const int32_t* lens;
  float* out;
  int64_t sequences, heads, kv_heads, dim, v_dim, block_size, blocks, max_blocks, window;
  float scale, softcap;
};

struct Item {
  int64_t sequence, first, count, kv_head;  // rows first .. first + count of q
  int64_t position;                         // of the first query in its sequence
};

struct Scratch {
  std::vector<float> weights, acc, high, total;  // [rows, chunk], [rows, v_dim], [rows], [rows]
  std::vector<const float*> queries;
  const float *k[kChunk], *v[kChunk];

  void reset(int64_t rows, int64_t v_dim) {
    weights.resize(rows * kChunk);
    acc.assign(rows * v_dim, 0.0f);
    high.assign(rows, -INFINITY);
    total.assign(rows, 0.0f);
    queries.resize(rows);
  }
};

template <int M, int N>
void score_tile(const float* const (&q)[M], const float* const* k, int64_t dim, float* scores) {
  const float* keys[N];
  float dots[M * N];
  for (int n = 0; n < N; ++n) keys[n] = k[n];
  dot_tile<M, N, 0>(q, keys, dim, dots);
  for (int m = 0; m < M; ++m)
    for (int n = 0; n < N; ++n) scores[m * kChunk + n] = dots[m * N + n];
}

template <int M>
void score_rows(const float* const* queries, const float* const* k, int64_t count, int64_t dim,
                float* scores) {
  const float* q[M];
  for (int m = 0; m < M; ++m) q[m] = queries[m];
  int64_t t = 0;
  for (; t + kTileCols <= count; t += kTileCols) score_tile<M, kTileCols>(q, k + t, dim, scores + t);
  for (; t < count; ++t) score_tile<M, 1>(q, k + t, dim, scores + t);
}

// Scores of one row -> weights relative to the running maximum; returns what earlier sums must be scaled by.
// Columns outside from..to are not seen by this row and get weight zero.
float soften(float* row, int64_t count, int64_t from, int64_t to, const Paged& p, float& high, float& total) {
  const int64_t padded = (count + kLanes - 1) / kLanes * kLanes;
  for (int64_t t = 0; t < padded; t += kLanes) {
    Vec s = load(row + t) * p.scale;
    if (p.softcap > 0.0f) s = p.softcap * tanh_vec(s / p.softcap);
    store(row + t, s);
  }
  std::fill(row, row + std::clamp<int64_t>(from, 0, padded), -INFINITY);
  std::fill(row + std::clamp<int64_t>(to, 0, count), row + padded, -INFINITY);
  Vec best = splat(high);
  for (int64_t t = 0; t < padded; t += kLanes) {
    Vec s = load(row + t);
    best = s > best ? s : best;
  }
  const float next = max_lane(best);
  // Nothing to see here, told by the borders and not by the scores: those of a row gone wrong are all NaN.
  if (std::min(to, count) <= std::max<int64_t>(from, 0)) {
    std::fill(row, row + padded, 0.0f);
    return 1.0f;
  }
  Vec sum{};
  for (int64_t t = 0; t < padded; t += kLanes) {
    Vec e = exp_nonpositive(load(row + t) - next);
    store(row + t, e);
    sum += e;
  }
  const float fade = high == -INFINITY ? 0.0f : std::exp(high - next);
  total = total * fade + sum_lanes(sum);
  high = next;
  return fade;
}

template <int M>
void add_values(float* acc, const float* weights, const float* const* v, int64_t count, int64_t dim) {
  float* rows[M];
  const float* w[M];
  for (int m = 0; m < M; ++m) {
    rows[m] = acc + m * dim;
    w[m] = weights + m * kChunk;
  }
  axpy_rows<M, 0>(rows, w, count, [&](int64_t t) { return v[t]; }, dim);
}

void find_slots(const Paged& p, const Item& item, int64_t begin, int64_t count, Scratch& s) {
  const int32_t* table = p.tables + item.sequence * p.table_row;
  for (int64_t t = 0; t < count; ++t) {
    int64_t slot = table[(begin + t) / p.block_size] * p.block_size + (begin + t) % p.block_size;
    int64_t head = slot * p.kv_heads + item.kv_head;
    s.k[t] = p.k + head * p.dim;
    s.v[t] = p.v + head * p.v_dim;
  }
}

void walk_chunk(const Paged& p, const Item& item, int64_t begin, int64_t count, int64_t rows, Scratch& s) {
  const int64_t group = p.heads / p.kv_heads;
  find_slots(p, item, begin, count, s);
  for_row_tiles(rows, [&](int64_t r, auto height) {
    score_rows<decltype(height)::value>(&s.queries[r], s.k, count, p.dim, &s.weights[r * kChunk]);
  });
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t position = item.position + r / group;
    const int64_t from = p.window > 0 ? position + 1 - p.window - begin : 0;
    const float fade =
        soften(&s.weights[r * kChunk], count, from, position + 1 - begin, p, s.high[r], s.total[r]);
    if (fade != 1.0f)
      for (int64_t d = 0; d < p.v_dim; ++d) s.acc[r * p.v_dim + d] *= fade;
  }
  for_row_tiles(rows, [&](int64_t r, auto height) {
    add_values<decltype(height)::value>(&s.acc[r * p.v_dim], &s.weights[r * kChunk], s.v, count, p.v_dim);
  });
}

void attend(const Paged& p, const Item& item, Scratch& s) {
  const int64_t group = p.heads / p.kv_heads, rows = item.count * group;
  s.reset(rows, p.v_dim);
  auto offset = [&](int64_t r, int64_t row_stride, int64_t head_stride) {
    return (item.first + r / group) * row_stride + (item.kv_head * group + r % group) * head_stride;
  };
  for (int64_t r = 0; r < rows; ++r) s.queries[r] = p.q + offset(r, p.q_row, p.q_head);
  const int64_t end = item.position + item.count;
  int64_t begin = p.window > 0 ? std::max<int64_t>(0, item.position + 1 - p.window) : 0;
  for (; begin < end; begin += kChunk) walk_chunk(p, item, begin, std::min(kChunk, end - begin), rows, s);
  for (int64_t r = 0; r < rows; ++r) {
    float* out = p.out + offset(r, p.heads * p.v_dim, p.v_dim);
    for (int64_t d = 0; d < p.v_dim; ++d) out[d] = s.acc[r * p.v_dim + d] / s.total[r];
  }
}

// Whether a sequence's table reaches its context and points into the cache.
bool reachable(const Paged& p, int64_t sequence, int64_t queries) {
  const int64_t len = p.lens[sequence], used = (len + p.block_size - 1) / p.block_size;
  if (len < 0 || used > p.max_blocks || (len > 0 && queries > len)) return false;
  const int32_t* table = p.tables + sequence * p.table_row;
  return std::all_of(table, table + used, [&](int32_t b) { return b >= 0 && b < p.blocks; });
}

int64_t run(const Paged& p) {
  std::vector<Item> items;
  int64_t scores = 0;
  for (int64_t i = 0; i < p.sequences; ++i) {
    const int64_t first = p.starts ? p.starts[i] : i, last = p.starts ? p.starts[i + 1] : i + 1;
    if (!reachable(p, i, last - first)) return i;
    if (p.lens[i] == 0) {
      std::fill(p.out + first * p.heads * p.v_dim, p.out + last * p.heads * p.v_dim, 0.0f);
      continue;
    }
    for (int64_t row = first; row < last; row += kBlockQueries)
      for (int64_t head = 0; head < p.kv_heads; ++head)
        items.push_back({i, row, std::min(kBlockQueries, last - row), head, p.lens[i] - (last - row)});
    scores += (last - first) * p.heads * p.lens[i];
  }
  const int threads = scores < kSerialScores ? 1 : omp_get_max_threads();
  // The longest contexts come last in a causal prefill; starting there leaves short items to fill the end.
  const int64_t n = static_cast<int64_t>(items.size());
#pragma omp parallel num_threads(threads)
  {
    thread_local Scratch scratch;
#pragma omp for schedule(dynamic, 1) nowait
    for (int64_t i = 0; i < n; ++i) attend(p, items[n - 1 - i], scratch);
  }
  return -1;
}

}  // namespace livery

// q [rows, heads, dim] with strides q_row and q_head; k [blocks, block_size, kv_heads, dim], v the same with
// v_dim; tables int32 [sequences, max_blocks] with stride table_row; starts int32 [sequences + 1] or null for
// one row each; lens int32 [sequences]; out [rows, heads, v_dim]. Returns the first sequence whose table,
// length and rows do not fit together, or -1.
extern "C" int64_t livery_paged_attention(const livery::Paged* call) { return livery::run(*call); }
