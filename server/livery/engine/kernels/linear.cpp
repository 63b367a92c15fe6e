// y = x W^T + bias for any number of rows, with W packed once into panels of a few dozen output columns
// (panels.hpp), so that every step over k reads one contiguous stretch of weights and multiplies it with one value of
// each row: no sums across lanes, weights streamed in order for few rows, registers full of accumulators for many.
//
// An element of y is one chain of multiply-adds in the order of k, whatever the layout, the number of rows and of
// threads: a row's result depends on nothing beside it.
#include "linear.hpp"

#include <type_traits>
#include <vector>

#include "panels.hpp"
#include "team.hpp"
#include "tiles.hpp"

namespace livery {

// Accumulators, the panel's vectors and one broadcast must fit the register file, with some to spare: twelve rows, which
// should fit as well, compile to code of half the speed (gcc 12, measured 78 and 172 GFLOP/s a core). Up to kPairRows
// two panels are computed side by side: one alone would wait for its own sums.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kRows = 10, kPairRows = 4;
#else
constexpr int kRows = 6, kPairRows = 1;
#endif
constexpr int64_t kSerialWeights = 16 * 1024;  // weights below which waking threads costs more
constexpr int64_t kDepth = 256;                // k of a panel that stay in the first cache while rows pass

struct LinearCall {
  const float* x;
  int64_t x_stride;
  const char* w;
  const float* bias;
  float* y;
  int64_t m, n, k;
};

// kLanes values from `at` on, zeros from `columns` on.
inline Vec load_columns_of(const float* p, int64_t at, int64_t columns) {
  const int64_t left = columns - at;
  if (left >= kLanes) return load(p + at);
  return left > 0 ? load_first(p + at, left) : splat(0.0f);
}

// Rows `row` to row + M of P panels from `panel` on, for k from begin to end. Begins with zeros, or with what y has
// of the k before. `weights` is where the first panel would begin at k = 0, the next one being `stride` bytes on.
// With Keep the widened weights are left in `widened` for the rows to come.
template <int M, int P, class Layout, bool Keep = false>
inline void linear_tile(const LinearCall& call, const char* weights, int64_t stride, int64_t row, int64_t panel,
                        int64_t begin, int64_t end, float* widened = nullptr) {
  constexpr int V = P * kPanelVecs;
  const float* x = call.x + row * call.x_stride;
  float* y = call.y + row * call.n + panel * kPanel;
  const int64_t columns = std::min<int64_t>(P * kPanel, call.n - panel * kPanel);
  Vec acc[M][V];
  for (int m = 0; m < M; ++m)
    for (int v = 0; v < V; ++v) acc[m][v] = splat(0.0f);
  if (begin > 0)
    for (int m = 0; m < M; ++m)
      for (int v = 0; v < V; ++v) acc[m][v] = load_columns_of(y + m * call.n, v * kLanes, columns);
  Layout::template each<P>(weights, stride, begin, end, [&](int64_t i, const Vec(&w)[V]) {
    if constexpr (Keep)
      for (int v = 0; v < V; ++v, widened += kLanes) store(widened, w[v]);
    for (int m = 0; m < M; ++m) {
      const Vec a = splat(x[m * call.x_stride + i]);
      for (int v = 0; v < V; ++v) acc[m][v] += a * w[v];
    }
  });
  if (call.bias && end == call.k)
    for (int v = 0; v < V; ++v) {
      const Vec bias = load_columns_of(call.bias + panel * kPanel, v * kLanes, columns);
      for (int m = 0; m < M; ++m) acc[m][v] += bias;
    }
  for (int m = 0; m < M; ++m)
    for (int v = 0; v < V; ++v) {
      float* to = y + m * call.n + v * kLanes;
      const int64_t left = columns - v * kLanes;
      if (left >= kLanes)
        store(to, acc[m][v]);
      else if (left > 0)
        store_first(to, acc[m][v], left);
    }
}

// Few rows: weights are widened in registers, which costs less than the memory they come from.
template <class Layout>
void few_rows(const LinearCall& call, int64_t first, int64_t last) {
  const int64_t stride = Layout::bytes(call.k);
  auto tile = [&](int64_t panel, auto height, auto panels) {
    linear_tile<decltype(height)::value, decltype(panels)::value, Layout>(call, call.w + panel * stride, stride, 0,
                                                                         panel, 0, call.k);
  };
  with_height(0, call.m, [&](int64_t, auto height) {
    int64_t panel = first;
    if constexpr (decltype(height)::value <= kPairRows)
      for (; panel + 2 <= last; panel += 2) tile(panel, height, std::integral_constant<int, 2>{});
    for (; panel < last; ++panel) tile(panel, height, std::integral_constant<int, 1>{});
  }, std::make_integer_sequence<int, kRows>{});
}

// Many rows: the first ones leave a stretch of the panel in the cache, widened, where the others find it.
template <class Layout>
void many_rows(const LinearCall& call, int64_t panel) {
  constexpr bool kKeep = !std::is_same_v<Layout, Fp32>;
  thread_local std::vector<float> widened(kDepth * kPanel);
  const char* weights = call.w + panel * Layout::bytes(call.k);
  for (int64_t begin = 0; begin < call.k; begin += kDepth) {
    const int64_t end = std::min(begin + kDepth, call.k);
    const char* stretch = kKeep ? reinterpret_cast<const char*>(widened.data() - begin * kPanel) : weights;
    for_row_tiles<kRows>(call.m, [&](int64_t row, auto height) {
      constexpr int M = decltype(height)::value;
      if constexpr (kKeep && M >= kRows / 2)  // more rows than a tile has are cut into tiles of at least half as many
        if (row == 0)
          return linear_tile<M, 1, Layout, kKeep>(call, weights, 0, row, panel, begin, end, widened.data());
      linear_tile<M, 1, Fp32>(call, stretch, 0, row, panel, begin, end);
    });
  }
}

template <class Layout>
void linear(const LinearCall& call) {
  const int64_t panels = (call.n + kPanel - 1) / kPanel;
  const int threads = call.n * call.k < kSerialWeights ? 1 : omp_get_max_threads();
  in_team(threads, [&] {
    const int64_t t = omp_get_thread_num(), count = omp_get_num_threads();
    const int64_t first = panels * t / count, last = panels * (t + 1) / count;
    if (call.m <= kRows)
      few_rows<Layout>(call, first, last);
    else
      for (int64_t panel = first; panel < last; ++panel) many_rows<Layout>(call, panel);
  });
}

}  // namespace livery

extern "C" int64_t livery_panel_width() { return livery::kPanel; }

// x [m, k] with x_stride floats between rows, w packed in the given layout (its place in weights.py's LAYOUTS), bias [n] or
// null, y [m, n].
extern "C" void livery_linear(const float* x, int64_t x_stride, const char* w, int64_t layout, const float* bias,
                              float* y, int64_t m, int64_t n, int64_t k) {
  using namespace livery;
  const LinearCall call{x, x_stride, w, bias, y, m, n, k};
  switch (layout) {
    case 0: return linear<Fp32>(call);
    case 1: return linear<Bfloat16>(call);
    case 2: return linear<Int8>(call);
    case 3: return linear<Int4>(call);
  }
}
