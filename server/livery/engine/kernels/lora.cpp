// Grouped low-rank products: every row of a batch gets its own adapter's B (scale * A x), at true rank.
//
// One task is one segment times a block of up to kBlockRows rows. A thread shrinks and then expands its task
// without meeting the others; only when there are too few tasks to go round are the two halves shared out by
// ranks and by columns.
#include "lora.hpp"

#include <algorithm>

#include "tiles.hpp"

namespace livery {

constexpr int kBlockRows = 2 * (kTileRows > 4 ? kTileRows : 4);
constexpr int64_t kRankChunk = 8;
constexpr int64_t kColumnChunk = 256;
constexpr int64_t kSerialWork = 32 * 1024;  // weights times rows below which waking threads costs more

struct Task {
  const LoraGroup* group;
  int64_t start, rows;
};

// One share of a task's first half (slice < 0: ranks begin..end) or second half (columns of one slice).
struct Share {
  int64_t task, slice, begin, end;
};

// h[m, r] = scale[r] * <x[m], A[r]> for N ranks from r on.
template <int M, int N, class T>
void shrink_tile(const LoraGroup& g, const float* const (&x)[M], int64_t r, float* h) {
  const T* ranks[N];
  float dots[M * N];
  for (int n = 0; n < N; ++n) ranks[n] = static_cast<const T*>(g.a) + (r + n) * g.in;
  dot_tile<M, N, 1>(x, ranks, g.in, dots);
  for (int m = 0; m < M; ++m)
    for (int n = 0; n < N; ++n) h[m * g.total_rank + r + n] = dots[m * N + n] * g.rank_scales[r + n];
}

// h[rows, total_rank] for ranks begin..end: a tile of ranks meets all rows while it is in the first cache.
template <class T>
void shrink(const LoraGroup& g, const Operands& op, const Task& task, int64_t begin, int64_t end, float* h) {
  const float* first_row = op.x + task.start * op.x_stride;
  auto tile = [&](int64_t r, auto columns) {
    for_row_tiles(task.rows, [&](int64_t row, auto height) {
      constexpr int M = decltype(height)::value, N = decltype(columns)::value;
      const float* x[M];
      for (int m = 0; m < M; ++m) x[m] = first_row + (row + m) * op.x_stride;
      shrink_tile<M, N, T>(g, x, r, h + row * g.total_rank);
    });
  };
  int64_t r = begin;
  for (; r + kTileCols <= end; r += kTileCols) tile(r, std::integral_constant<int, kTileCols>{});
  for (; r < end; ++r) tile(r, std::integral_constant<int, 1>{});
}

// y[rows, offset + begin .. offset + end) += h B, a stretch of columns at a time for all rows.
template <class T>
void expand(const LoraGroup& g, const Operands& op, const Task& task, const LoraSlice& s, int64_t begin,
            int64_t end, const float* h) {
  float* first_row = op.y + task.start * op.y_stride + s.offset;
  for (int64_t c = begin; c < end; c += kColumnChunk) {
    const int64_t columns = std::min(kColumnChunk, end - c);
    auto b = [&](int64_t j) { return static_cast<const T*>(s.b) + j * s.out + c; };
    for_row_tiles(task.rows, [&](int64_t row, auto height) {
      constexpr int M = decltype(height)::value;
      float* y[M];
      const float* ranks[M];
      for (int m = 0; m < M; ++m) {
        y[m] = first_row + (row + m) * op.y_stride + c;
        ranks[m] = h + (row + m) * g.total_rank + s.first_rank;
      }
      axpy_rows<M, 1>(y, ranks, s.rank, b, columns);
    });
  }
}

// The same for one row, whose sums stay in the first cache: rows of B pass in the order they lie in memory.
template <class T>
void expand_row(const LoraGroup& g, const Operands& op, const Task& task, const LoraSlice& s, int64_t begin,
                int64_t end, const float* h) {
  constexpr int kRanks = 4;
  float* y = op.y + task.start * op.y_stride + s.offset + begin;
  const float* ranks = h + s.first_rank;
  const int64_t columns = end - begin;
  const T* b = static_cast<const T*>(s.b) + begin;
  auto some = [&](int64_t j, auto count) {
    constexpr int R = decltype(count)::value;
    const T* rows[R];
    Vec a[R];
    for (int r = 0; r < R; ++r) {
      rows[r] = b + (j + r) * s.out;
      a[r] = splat(ranks[j + r]);
    }
    int64_t c = 0;
    for (; c + kLanes <= columns; c += kLanes) {
      Vec sum = load(y + c);
      for (int r = 0; r < R; ++r) {
        __builtin_prefetch(rows[r] + c + kRanks * s.out);
        sum += a[r] * load(rows[r] + c);
      }
      store(y + c, sum);
    }
    if (c < columns) {
      Vec sum = load_first(y + c, columns - c);
      for (int r = 0; r < R; ++r) sum += a[r] * load_first(rows[r] + c, columns - c);
      store_first(y + c, sum, columns - c);
    }
  };
  int64_t j = 0;
  for (; j + kRanks <= s.rank; j += kRanks) some(j, std::integral_constant<int, kRanks>{});
  for (; j < s.rank; ++j) some(j, std::integral_constant<int, 1>{});
}

template <class T>
void run_share(const Operands& op, const Task& task, const Share& share, float* h) {
  const LoraGroup& g = *task.group;
  if (share.slice < 0)
    shrink<T>(g, op, task, share.begin, share.end, h);
  else if (task.rows == 1)
    expand_row<T>(g, op, task, g.slices[share.slice], share.begin, share.end, h);
  else
    expand<T>(g, op, task, g.slices[share.slice], share.begin, share.end, h);
}

void run_share(const Operands& op, const Task& task, const Share& share, float* h) {
  task.group->is_bf16 ? run_share<Bf16>(op, task, share, h) : run_share<float>(op, task, share, h);
}

void run_task(const Operands& op, const Task& task, float* h) {
  const LoraGroup& g = *task.group;
  run_share(op, task, {0, -1, 0, g.total_rank}, h);
  for (int64_t i = 0; i < g.n_slices; ++i) run_share(op, task, {0, i, 0, g.slices[i].out}, h);
}

void run_tasks(const Operands& op, const std::vector<Task>& tasks, int64_t h_size) {
  const int64_t n = static_cast<int64_t>(tasks.size());
  thread_local std::vector<float> h;
  h.resize(h_size);
#pragma omp for schedule(dynamic, 1) nowait
  for (int64_t i = 0; i < n; ++i) run_task(op, tasks[i], h.data());
}

void run_split(const Operands& op, const std::vector<Task>& tasks, int64_t h_size, SharedRoom& room) {
  thread_local std::vector<Share> shrinks, expands;
  shrinks.clear();
  expands.clear();
  for (int64_t t = 0; t < static_cast<int64_t>(tasks.size()); ++t) {
    const LoraGroup& g = *tasks[t].group;
    for (int64_t r = 0; r < g.total_rank; r += kRankChunk)
      shrinks.push_back({t, -1, r, std::min(r + kRankChunk, g.total_rank)});
    for (int64_t i = 0; i < g.n_slices; ++i)
      for (int64_t c = 0; c < g.slices[i].out; c += kColumnChunk)
        expands.push_back({t, i, c, std::min(c + kColumnChunk, g.slices[i].out)});
  }
  float* h = room.of(h_size * tasks.size());
  for (const auto* shares : {&shrinks, &expands}) {
    const Share* share = shares->data();
    const int64_t n = static_cast<int64_t>(shares->size());
#pragma omp for schedule(dynamic, 1) nowait
    for (int64_t i = 0; i < n; ++i) run_share(op, tasks[share[i].task], share[i], h + share[i].task * h_size);
    if (shares == &shrinks) room.barrier.wait(omp_get_num_threads());
  }
}

bool fits(const Segment& s, int64_t rows, int64_t in, int64_t out) {
  if (s.start < 0 || s.end < s.start || s.end > rows || s.group->in != in) return false;
  for (int64_t i = 0; i < s.group->n_slices; ++i)
    if (s.group->slices[i].offset + s.group->slices[i].out > out) return false;
  return true;
}

void grouped_lora(const Operands& op, const Segment* segments, int64_t n, SharedRoom& room) {
  thread_local std::vector<Task> tasks;  // every thread lists the same
  tasks.clear();
  int64_t most_ranks = 0;
  for (const Segment* s = segments; s != segments + n; ++s) {
    for (int64_t row = s->start; row < s->end; row += kBlockRows)
      tasks.push_back({s->group, row, std::min<int64_t>(kBlockRows, s->end - row)});
    most_ranks = std::max(most_ranks, s->group->total_rank);
  }
  // The longest first: one that begins last would be waited for.
  std::stable_sort(tasks.begin(), tasks.end(), [](const Task& a, const Task& b) {
    return a.rows * a.group->total_rank > b.rows * b.group->total_rank;
  });
  const int threads = omp_get_num_threads();
  if (threads > 1 && !tasks.empty() && static_cast<int>(tasks.size()) < 2 * threads)
    run_split(op, tasks, most_ranks * kBlockRows, room);
  else
    run_tasks(op, tasks, most_ranks * kBlockRows);
}

}  // namespace livery

// x [rows, in], y [rows, out], strides in floats. Returns the index of the first segment that does not fit x
// and y (nothing is written then), or -1.
extern "C" int64_t livery_grouped_lora(const float* x, int64_t x_stride, float* y, int64_t y_stride,
                                       int64_t rows, int64_t in, int64_t out,
                                       const livery::Segment* segments, int64_t n_segments) {
  using namespace livery;
  int64_t work = 0;
  for (int64_t i = 0; i < n_segments; ++i) {
    const Segment& s = segments[i];
    if (!fits(s, rows, in, out)) return i;
    work += (s.end - s.start) * s.group->total_rank * in;
  }
  SharedRoom room;
  in_team(work < kSerialWork ? 1 : omp_get_max_threads(),
          [&] { grouped_lora({x, x_stride, y, y_stride}, segments, n_segments, room); });
  return -1;
}
