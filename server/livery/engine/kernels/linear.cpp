// y = x W^T + bias for a few rows of x, with W in its natural layout and streamed from memory once.
#include <omp.h>

#include <algorithm>

#include "tiles.hpp"

namespace livery {

constexpr int64_t kSerialWeights = 16 * 1024;  // weights below which waking threads costs more

struct LinearCall {
  const float* x;
  int64_t x_stride;
  const float* w;
  const float* bias;
  float* y;
  int64_t m, n, k;
};

template <int M, int N, int Ahead>
void linear_tile(const LinearCall& call, int64_t row, int64_t col) {
  const float* x[M];
  const float* w[N];
  float dots[M * N];
  for (int m = 0; m < M; ++m) x[m] = call.x + (row + m) * call.x_stride;
  for (int n = 0; n < N; ++n) w[n] = call.w + (col + n) * call.k;
  dot_tile<M, N, Ahead>(x, w, call.k, dots);
  for (int m = 0; m < M; ++m)
    for (int n = 0; n < N; ++n)
      call.y[(row + m) * call.n + col + n] = dots[m * N + n] + (call.bias ? call.bias[col + n] : 0.0f);
}

// N columns for all rows, in tiles of up to Rows rows; only the first tile waits for memory, so only it looks
// ahead.
template <int Rows, int N, int Ahead>
void linear_columns(const LinearCall& call, int64_t col) {
  for_row_tiles<Rows>(call.m, [&](int64_t row, auto height) {
    if (row == 0)
      linear_tile<decltype(height)::value, N, Ahead>(call, row, col);
    else
      linear_tile<decltype(height)::value, N, 0>(call, row, col);
  });
}

template <int Rows, int N, int Ahead>
void linear_by(const LinearCall& call) {
  const int threads = call.n * call.k < kSerialWeights ? 1 : omp_get_max_threads();
  const int64_t tiles = call.n / N;
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t t = 0; t < tiles; ++t) linear_columns<Rows, N, Ahead>(call, t * N);
  for (int64_t col = tiles * N; col < call.n; ++col) linear_columns<Rows, 1, 0>(call, col);
}

}  // namespace livery

// x [m, k] with x_stride floats between rows, w [n, k], bias [n] or null, y [m, n].
extern "C" void livery_linear(const float* x, int64_t x_stride, const float* w, const float* bias, float* y,
                              int64_t m, int64_t n, int64_t k) {
  using namespace livery;
  const LinearCall call{x, x_stride, w, bias, y, m, n, k};
  // Few rows wait for memory and gain from many streams; many rows compute and gain from reuse in registers.
  if (m == 1)
    linear_by<1, 16, 0>(call);
  else if (kTileRows > 4 && m <= 8)
    linear_by<4, 8, 2>(call);
  else
    linear_by<kTileRows, kTileCols, 1>(call);
}
