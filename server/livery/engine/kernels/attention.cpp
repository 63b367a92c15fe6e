// Attention over a paged KV cache for any number of sequences with any number of query tokens each.
//
// One item is a block of queries of one sequence times some KV heads, all where there are items enough, with the
// query heads that share them: each key and value is read once per item, and memory in the order it lies in. The context is walked in chunks with a running maximum and
// sum. Slots past a sequence's context are never read: they may hold another request's values.
//
// Chunks, and the parts of a context that are summed up apart, begin at multiples of their size, and parts are
// joined in their order: a row's result is the same bits whatever queries share its item, and however items and
// parts are shared out.
#include "attention.hpp"

#include <algorithm>
#include <cmath>

#include "tiles.hpp"

namespace livery {

constexpr int64_t kChunk = 64;        // tokens of context per step
constexpr int64_t kPart = 512;        // tokens of context summed up apart, a multiple of kChunk
constexpr int64_t kBlockQueries = 8;  // query tokens per item
constexpr int kItemsEach = 4;          // items per thread from which on threads have about equal shares
constexpr int64_t kSerialScores = 8 * 1024;

struct Item {
  int64_t sequence, first, count;  // rows first .. first + count of q
  int64_t kv_head, kv_heads;       // the first KV head, and how many
  int64_t position;                // of the first query in its sequence
  int64_t part, parts;             // parts of the context that this item walks
  float* partial;                  // where the sums of its one part go; null: they are joined here

  // Rows of sums: queries times query heads of one KV head, and of all.
  int64_t head_rows(const Paged& p) const { return count * (p.heads / p.kv_heads); }
  int64_t rows(const Paged& p) const { return head_rows(p) * kv_heads; }
};

// Sums of weighted values so far, for each row of an item: the highest score, the sum of weights, [rows, v_dim].
struct Sums {
  float *high, *total, *acc;

  static int64_t size(int64_t rows, int64_t v_dim) { return rows * (v_dim + 2); }
  static Sums at(float* memory, int64_t rows) { return {memory, memory + rows, memory + 2 * rows}; }
  Sums from(int64_t row, int64_t v_dim) const { return {high + row, total + row, acc + row * v_dim}; }

  void clear(int64_t rows, int64_t v_dim) const {
    std::fill(high, high + rows, -INFINITY);
    std::fill(total, total + rows * (1 + v_dim), 0.0f);
  }
};

struct Scratch {
  std::vector<float> weights, turned, part, whole;  // [rows, chunk], [dim, chunk], two of Sums
  std::vector<const float*> queries;
  const float *k[kChunk], *v[kChunk];

  void reset(int64_t rows, int64_t dim, int64_t v_dim) {
    weights.resize(rows * kChunk);
    turned.resize(dim * kChunk);
    part.resize(Sums::size(rows, v_dim));
    whole.resize(Sums::size(rows, v_dim));
    queries.resize(rows);
  }
};

// The keys of a chunk with tokens side by side: [dim, kChunk]. What lies beyond the last token is zero.
void turn_keys(const float* const* k, int64_t offset, int64_t count, int64_t dim, float* turned) {
  for (int64_t t = 0; t < count; t += kLanes)
    for (int64_t d = 0; d < dim; d += kLanes) {
      const int64_t width = std::min<int64_t>(kLanes, dim - d);
      Vec block[kLanes];
      for (int64_t i = 0; i < kLanes; ++i) {
        if (t + i >= count)
          block[i] = splat(0.0f);
        else
          block[i] = width == kLanes ? load(k[t + i] + offset + d) : load_first(k[t + i] + offset + d, width);
      }
      transpose(block);
      for (int64_t i = 0; i < width; ++i) store(turned + (d + i) * kChunk + t, block[i]);
    }
}

// Scores of M rows with V vectors of tokens: each is one chain of additions along dim.
template <int M, int V>
inline void score_tile(const float* const (&q)[M], const float* turned, int64_t dim, float* scores) {
  Vec acc[M][V];
  for (int m = 0; m < M; ++m)
    for (int v = 0; v < V; ++v) acc[m][v] = splat(0.0f);
  for (int64_t d = 0; d < dim; ++d, turned += kChunk) {
    Vec keys[V];
    for (int v = 0; v < V; ++v) keys[v] = load(turned + v * kLanes);
    for (int m = 0; m < M; ++m) {
      const Vec a = splat(q[m][d]);
      for (int v = 0; v < V; ++v) acc[m][v] += a * keys[v];
    }
  }
  for (int m = 0; m < M; ++m)
    for (int v = 0; v < V; ++v) store(scores + m * kChunk + v * kLanes, acc[m][v]);
}

template <int M>
void score_rows(const float* const* queries, const float* turned, int64_t count, int64_t dim, float* scores) {
  constexpr int kVecs = 4;
  const float* q[M];
  for (int m = 0; m < M; ++m) q[m] = queries[m];
  int64_t t = 0;
  for (; t + (kVecs - 1) * kLanes < count; t += kVecs * kLanes) score_tile<M, kVecs>(q, turned + t, dim, scores + t);
  for (; t < count; t += kLanes) score_tile<M, 1>(q, turned + t, dim, scores + t);
}

// Scores of one row -> weights relative to the running maximum; returns what earlier sums must be scaled by.
// Columns outside from..to are not seen by this row and get weight zero.
float soften(float* row, int64_t count, int64_t from, int64_t to, const Paged& p, float& high, float& total) {
  const int64_t padded = (count + kLanes - 1) / kLanes * kLanes;
  from = std::max<int64_t>(from, 0);
  to = std::min(to, count);
  // Nothing to see here, told by the borders and not by the scores: those of a row gone wrong are all NaN.
  if (to <= from) {
    std::fill(row, row + padded, 0.0f);
    return 1.0f;
  }
  for (int64_t t = 0; t < padded; t += kLanes) {
    Vec s = load(row + t) * p.scale;
    if (p.softcap > 0.0f) s = p.softcap * tanh_vec(s / p.softcap);
    store(row + t, s);
  }
  std::fill(row, row + from, -INFINITY);
  std::fill(row + to, row + padded, -INFINITY);
  Vec best = splat(high);
  for (int64_t t = 0; t < padded; t += kLanes) {
    const Vec s = load(row + t);
    best = s > best ? s : best;
  }
  const float next = max_lane(best);
  Vec sum{};
  for (int64_t t = 0; t < padded; t += kLanes) {
    const Vec e = exp_nonpositive(load(row + t) - next);
    store(row + t, e);
    sum += e;
  }
  const float fade = high == next ? 1.0f : high == -INFINITY ? 0.0f : std::exp(high - next);
  total = total * fade + sum_lanes(sum);
  high = next;
  return fade;
}

template <int M>
void add_values(float* acc, const float* weights, const float* const* v, int64_t offset, int64_t count, int64_t dim) {
  float* rows[M];
  const float* w[M];
  for (int m = 0; m < M; ++m) {
    rows[m] = acc + m * dim;
    w[m] = weights + m * kChunk;
  }
  axpy_rows<M, 0>(rows, w, count, [&](int64_t t) { return v[t] + offset; }, dim);
}

// Where keys and values of tokens begin .. begin + count lie; those of the chunk after them are fetched, as no
// hardware foresees jumps from block to block.
void find_slots(const Paged& p, const Item& item, int64_t begin, int64_t count, int64_t end, Scratch& s) {
  const int32_t* table = p.tables + item.sequence * p.table_row;
  auto each_token = [&](int64_t from, int64_t to, auto&& f) {
    int64_t block = from / p.block_size, offset = from - block * p.block_size;
    for (int64_t t = from; t < to; ++block, offset = 0) {
      int64_t head = (table[block] * p.block_size + offset) * p.kv_heads + item.kv_head;
      for (; offset < p.block_size && t < to; ++offset, ++t, head += p.kv_heads)
        f(t, p.k + head * p.dim, p.v + head * p.v_dim);
    }
  };
  each_token(begin, begin + count, [&](int64_t t, const float* k, const float* v) {
    s.k[t - begin] = k;
    s.v[t - begin] = v;
  });
  each_token(begin + count, std::min(begin + count + kChunk, end), [&](int64_t, const float* k, const float* v) {
    for (int64_t d = 0; d < item.kv_heads * p.dim; d += 16) __builtin_prefetch(k + d, 0, 2);
    for (int64_t d = 0; d < item.kv_heads * p.v_dim; d += 16) __builtin_prefetch(v + d, 0, 2);
  });
}

// The first token that the query at `position` sees.
int64_t first_seen(const Paged& p, int64_t position) {
  return p.window > 0 ? std::max<int64_t>(0, position + 1 - p.window) : 0;
}

// One chunk for one KV head, the item's head-th; sums begin at its rows.
void walk_chunk(const Paged& p, const Item& item, int64_t head, int64_t begin, int64_t count, Scratch& s,
                const Sums& sums) {
  const int64_t group = p.heads / p.kv_heads, rows = item.head_rows(p);
  turn_keys(s.k, head * p.dim, count, p.dim, s.turned.data());
  for_row_tiles(rows, [&](int64_t r, auto height) {
    score_rows<decltype(height)::value>(&s.queries[head * rows + r], s.turned.data(), count, p.dim,
                                        &s.weights[r * kChunk]);
  });
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t position = item.position + r / group;
    const int64_t from = p.window > 0 ? position + 1 - p.window - begin : 0;
    const float fade = soften(&s.weights[r * kChunk], count, from, position + 1 - begin, p, sums.high[r], sums.total[r]);
    if (fade != 1.0f)
      for (int64_t d = 0; d < p.v_dim; ++d) sums.acc[r * p.v_dim + d] *= fade;
  }
  // Values that no query of the item sees aren't touched: nothing times what is not a number would be one neither.
  const int64_t skip = std::max<int64_t>(0, first_seen(p, item.position) - begin);
  for_row_tiles(rows, [&](int64_t r, auto height) {
    add_values<decltype(height)::value>(sums.acc + r * p.v_dim, &s.weights[r * kChunk + skip], s.v + skip,
                                        head * p.v_dim, count - skip, p.v_dim);
  });
}

void walk_part(const Paged& p, const Item& item, int64_t part, Scratch& s, const Sums& sums) {
  sums.clear(item.rows(p), p.v_dim);
  const int64_t end = std::min((part + 1) * kPart, item.position + item.count);
  int64_t begin = std::max(part * kPart, first_seen(p, item.position) / kChunk * kChunk);
  for (; begin < end; begin += kChunk) {
    const int64_t count = std::min(kChunk, end - begin);
    find_slots(p, item, begin, count, end, s);
    for (int64_t head = 0; head < item.kv_heads; ++head)
      walk_chunk(p, item, head, begin, count, s, sums.from(head * item.head_rows(p), p.v_dim));
  }
}

// Joins the sums of the next part to those of the ones before.
void join_row(const Sums& whole, const Sums& part, int64_t r, int64_t v_dim) {
  const float high = std::max(whole.high[r], part.high[r]);
  const float fade = std::exp(whole.high[r] - high), more = std::exp(part.high[r] - high);
  float *to = whole.acc + r * v_dim, *from = part.acc + r * v_dim;
  for (int64_t d = 0; d < v_dim; ++d) to[d] *= fade;
  for (int64_t d = 0; d < v_dim; ++d) from[d] *= more;
  for (int64_t d = 0; d < v_dim; ++d) to[d] += from[d];
  const float before = whole.total[r] * fade, added = part.total[r] * more;
  whole.total[r] = before + added;
  whole.high[r] = high;
}

// The query that row r of an item's sums is of, as an offset from the item's first.
int64_t query_of(const Paged& p, const Item& item, int64_t r) {
  return r % item.head_rows(p) / (p.heads / p.kv_heads);
}

__attribute__((noinline)) void join(const Paged& p, const Item& item, int64_t part, const Sums& whole,
                                    const Sums& sums) {
  for (int64_t r = 0; r < item.rows(p); ++r) {
    const int64_t position = item.position + query_of(p, item, r), first = first_seen(p, position) / kPart;
    if (part == first) {
      whole.high[r] = sums.high[r];
      whole.total[r] = sums.total[r];
      std::copy(sums.acc + r * p.v_dim, sums.acc + (r + 1) * p.v_dim, whole.acc + r * p.v_dim);
    } else if (part > first && part * kPart <= position) {
      join_row(whole, sums, r, p.v_dim);
    }
  }
}

// Which query head row r of an item's sums is of.
int64_t head_of(const Paged& p, const Item& item, int64_t r) {
  const int64_t group = p.heads / p.kv_heads;
  return (item.kv_head + r / item.head_rows(p)) * group + r % group;
}

void finish(const Paged& p, const Item& item, const Sums& whole) {
  for (int64_t r = 0; r < item.rows(p); ++r) {
    float* out = p.out + ((item.first + query_of(p, item, r)) * p.heads + head_of(p, item, r)) * p.v_dim;
    for (int64_t d = 0; d < p.v_dim; ++d) out[d] = whole.acc[r * p.v_dim + d] / whole.total[r];
  }
}

void attend(const Paged& p, const Item& item, Scratch& s) {
  const int64_t rows = item.rows(p);
  s.reset(rows, p.dim, p.v_dim);
  for (int64_t r = 0; r < rows; ++r)
    s.queries[r] = p.q + (item.first + query_of(p, item, r)) * p.q_row + head_of(p, item, r) * p.q_head;
  if (item.partial) return walk_part(p, item, item.part, s, Sums::at(item.partial, rows));
  const Sums whole = Sums::at(s.whole.data(), rows), sums = Sums::at(s.part.data(), rows);
  if (item.parts == 1) {  // nothing to join
    walk_part(p, item, item.part, s, whole);
    return finish(p, item, whole);
  }
  for (int64_t part = item.part; part < item.part + item.parts; ++part) {
    walk_part(p, item, part, s, sums);
    join(p, item, part, whole, sums);
  }
  finish(p, item, whole);
}

// All parts of an item were walked by others, their sums one behind the other at `partial`.
void join_parts(const Paged& p, const Item& item, float* partial, Scratch& s) {
  const int64_t rows = item.rows(p);
  s.reset(rows, p.dim, p.v_dim);
  const Sums whole = Sums::at(s.whole.data(), rows);
  for (int64_t i = 0; i < item.parts; ++i, partial += Sums::size(rows, p.v_dim))
    join(p, item, item.part + i, whole, Sums::at(partial, rows));
  finish(p, item, whole);
}

// Whether a sequence's table reaches its context and points into the cache.
bool reachable(const Paged& p, int64_t sequence, int64_t queries) {
  const int64_t len = p.lens[sequence], used = (len + p.block_size - 1) / p.block_size;
  if (len < 0 || used > p.max_blocks || (len > 0 && queries > len)) return false;
  const int32_t* table = p.tables + sequence * p.table_row;
  return std::all_of(table, table + used, [&](int32_t b) { return b >= 0 && b < p.blocks; });
}

// With `whole` an item has all KV heads, else one.
void list_items(const Paged& p, std::vector<Item>& items, bool whole) {
  items.clear();
  const int64_t heads = whole ? p.kv_heads : 1;
  for (int64_t i = 0; i < p.sequences; ++i) {
    const int64_t first = p.starts ? p.starts[i] : i, last = p.starts ? p.starts[i + 1] : i + 1;
    for (int64_t row = first; p.lens[i] > 0 && row < last; row += kBlockQueries) {
      const int64_t count = std::min(kBlockQueries, last - row), position = p.lens[i] - (last - row);
      const int64_t part = first_seen(p, position) / kPart, parts = (position + count - 1) / kPart + 1 - part;
      for (int64_t head = 0; head < p.kv_heads; head += heads)
        items.push_back({i, row, count, head, heads, position, part, parts, nullptr});
    }
  }
}

// Rows of sequences without any context, which see nothing.
void clear_empty(const Paged& p) {
  for (int64_t i = 0; i < p.sequences; ++i) {
    const int64_t first = p.starts ? p.starts[i] : i, last = p.starts ? p.starts[i + 1] : i + 1;
    if (p.lens[i] == 0) std::fill(p.out + first * p.heads * p.v_dim, p.out + last * p.heads * p.v_dim, 0.0f);
  }
}

void share_out(const Paged& p, const std::vector<Item>& items) {
  thread_local Scratch scratch;
  const Item* item = items.data();
  const int64_t n = static_cast<int64_t>(items.size());
  // The longest contexts come last in a causal prefill; starting there leaves short items to fill the end.
#pragma omp for schedule(dynamic, 1) nowait
  for (int64_t i = 0; i < n; ++i) attend(p, item[n - 1 - i], scratch);
}

// Few items of long contexts: threads share their parts, and then join what belongs together.
void share_parts(const Paged& p, const std::vector<Item>& items, SharedRoom& room) {
  thread_local std::vector<Item> parts;
  thread_local std::vector<int64_t> places;
  thread_local Scratch scratch;
  parts.clear();
  places.clear();
  int64_t size = 0;
  for (const Item& item : items) {
    places.push_back(size);
    size += item.parts * Sums::size(item.rows(p), p.v_dim);
  }
  float* memory = room.of(size);
  for (size_t i = 0; i < items.size(); ++i) {
    const int64_t step = Sums::size(items[i].rows(p), p.v_dim);
    for (int64_t part = 0; part < items[i].parts; ++part) {
      parts.push_back(items[i]);
      parts.back().part += part;
      parts.back().partial = memory + places[i] + part * step;
    }
  }
  share_out(p, parts);
  room.barrier.wait(omp_get_num_threads());
  const Item* item = items.data();
  const int64_t* place = places.data();
  const int64_t n = static_cast<int64_t>(items.size());
#pragma omp for schedule(dynamic, 1) nowait
  for (int64_t i = 0; i < n; ++i) join_parts(p, item[i], memory + place[i], scratch);
}

int64_t misfit(const Paged& p) {
  for (int64_t i = 0; i < p.sequences; ++i)
    if (!reachable(p, i, p.starts ? p.starts[i + 1] - p.starts[i] : 1)) return i;
  return -1;
}

void paged_attention(const Paged& p, SharedRoom& room) {
  thread_local std::vector<Item> items;  // every thread lists the same
  const int threads = omp_get_num_threads();
  list_items(p, items, p.sequences >= kItemsEach * threads);
  const bool has_long = std::any_of(items.begin(), items.end(), [](const Item& item) { return item.parts > 1; });
  if (threads > 1 && has_long && static_cast<int>(items.size()) < kItemsEach * threads)
    share_parts(p, items, room);
  else
    share_out(p, items);
#pragma omp single nowait
  clear_empty(p);
}

}  // namespace livery

// q [rows, heads, dim] with strides q_row and q_head; k [blocks, block_size, kv_heads, dim], v the same with
// v_dim; tables int32 [sequences, max_blocks] with stride table_row; starts int32 [sequences + 1] or null for
// one row each; lens int32 [sequences]; out [rows, heads, v_dim]. Returns the first sequence whose table,
// length and rows do not fit together, or -1.
extern "C" int64_t livery_paged_attention(const livery::Paged* call) {
  const livery::Paged& p = *call;
  if (const int64_t sequence = livery::misfit(p); sequence >= 0) return sequence;
  int64_t scores = 0;
  for (int64_t i = 0; i < p.sequences; ++i)
    scores += (p.starts ? p.starts[i + 1] - p.starts[i] : 1) * p.heads * p.lens[i];
  livery::SharedRoom room;
  livery::in_team(scores < livery::kSerialScores ? 1 : omp_get_max_threads(), [&] { livery::paged_attention(p, room); });
  return -1;
}
