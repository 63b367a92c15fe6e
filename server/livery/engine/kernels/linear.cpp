// y = x W^T + bias for any number of rows, with W packed once into panels of a few dozen output columns:
//
//     panel p: [k][kPanel]   W[p * kPanel + c][i] at i * kPanel + c
//
// so that every step over k reads one contiguous stretch of weights and multiplies it with one value of each row:
// no sums across lanes, weights streamed in order for few rows, registers full of accumulators for many.
#include "linear.hpp"

#include "team.hpp"
#include "tiles.hpp"

namespace livery {

constexpr int kPanelVecs = 2;
constexpr int kPanel = kPanelVecs * kLanes;
// Accumulators, the panel's vectors and one broadcast must fit the register file.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kRows = 12;
#else
constexpr int kRows = 6;
#endif
constexpr int64_t kSerialWeights = 16 * 1024;  // weights below which waking threads costs more

struct LinearCall {
  const float* x;
  int64_t x_stride;
  const float* w;
  const float* bias;
  float* y;
  int64_t m, n, k;
};

template <int M>
inline void linear_tile(const LinearCall& call, int64_t row, int64_t panel) {
  const float* w = call.w + panel * call.k * kPanel;
  const float* x = call.x + row * call.x_stride;
  Vec acc[M][kPanelVecs];
  for (int m = 0; m < M; ++m)
    for (int v = 0; v < kPanelVecs; ++v) acc[m][v] = splat(0.0f);
  for (int64_t i = 0; i < call.k; ++i, w += kPanel) {
    Vec b[kPanelVecs];
    for (int v = 0; v < kPanelVecs; ++v) b[v] = load(w + v * kLanes);
    for (int m = 0; m < M; ++m) {
      const Vec a = splat(x[m * call.x_stride + i]);
      for (int v = 0; v < kPanelVecs; ++v) acc[m][v] += a * b[v];
    }
  }
  for (int v = 0; v < kPanelVecs; ++v) {
    const int64_t col = panel * kPanel + v * kLanes, left = call.n - col;
    if (left <= 0) return;
    const bool whole = left >= kLanes;
    Vec bias = splat(0.0f);
    if (call.bias) bias = whole ? load(call.bias + col) : load_first(call.bias + col, left);
    for (int m = 0; m < M; ++m) {
      float* y = call.y + (row + m) * call.n + col;
      if (whole)
        store(y, acc[m][v] + bias);
      else
        store_first(y, acc[m][v] + bias, left);
    }
  }
}

}  // namespace livery

extern "C" int64_t livery_panel_width() { return livery::kPanel; }

// x [m, k] with x_stride floats between rows, w packed as above, bias [n] or null, y [m, n].
extern "C" void livery_linear(const float* x, int64_t x_stride, const float* w, const float* bias, float* y,
                              int64_t m, int64_t n, int64_t k) {
  using namespace livery;
  const LinearCall call{x, x_stride, w, bias, y, m, n, k};
  const int64_t panels = (n + kPanel - 1) / kPanel;
  const int threads = n * k < kSerialWeights ? 1 : omp_get_max_threads();
  in_team(threads, [&] {
#pragma omp for schedule(static) nowait
    for (int64_t panel = 0; panel < panels; ++panel)
      for_row_tiles<kRows>(call.m, [&](int64_t row, auto height) {
        linear_tile<decltype(height)::value>(call, row, panel);
      });
  });
}
