// Register tiles shared by the kernels: dot products of a few rows with a few rows, and weighted sums of rows.
#pragma once

#include "vec.hpp"

namespace livery {

// out[m * N + n] = <x[m], w[n]> over k values; every element is read once.
template <int M, int N, class T>
inline void dot_tile(const float* const (&x)[M], const T* const (&w)[N], int64_t k, float* out) {
  Vec acc[M * N] = {};
  int64_t i = 0;
  for (; i + kLanes <= k; i += kLanes) {
    Vec b[N];
    for (int n = 0; n < N; ++n) b[n] = load(w[n] + i);
    for (int m = 0; m < M; ++m) {
      Vec a = load(x[m] + i);
      for (int n = 0; n < N; ++n) acc[m * N + n] += a * b[n];
    }
  }
  if (i < k) {
    Vec b[N];
    for (int n = 0; n < N; ++n) b[n] = load_first(w[n] + i, k - i);
    for (int m = 0; m < M; ++m) {
      Vec a = load_first(x[m] + i, k - i);
      for (int n = 0; n < N; ++n) acc[m * N + n] += a * b[n];
    }
  }
  sum_each<M * N>(acc, out);
}

// y[m][0 .. V * kLanes) += sum over j < count of h[m][j] * b[j][...], rows of b being b_stride apart.
template <int M, int V, class T>
inline void axpy_tile(float* const (&y)[M], const float* const (&h)[M], const T* b, int64_t b_stride,
                      int64_t count) {
  Vec acc[M][V];
  for (int m = 0; m < M; ++m)
    for (int v = 0; v < V; ++v) acc[m][v] = load(y[m] + v * kLanes);
  for (int64_t j = 0; j < count; ++j) {
    Vec row[V];
    for (int v = 0; v < V; ++v) row[v] = load(b + j * b_stride + v * kLanes);
    for (int m = 0; m < M; ++m)
      for (int v = 0; v < V; ++v) acc[m][v] += h[m][j] * row[v];
  }
  for (int m = 0; m < M; ++m)
    for (int v = 0; v < V; ++v) store(y[m] + v * kLanes, acc[m][v]);
}

// The same for the last n < kLanes columns.
template <int M, class T>
inline void axpy_last(float* const (&y)[M], const float* const (&h)[M], const T* b, int64_t b_stride,
                      int64_t count, int64_t n) {
  for (int m = 0; m < M; ++m) {
    Vec acc = load_first(y[m], n);
    for (int64_t j = 0; j < count; ++j) acc += h[m][j] * load_first(b + j * b_stride, n);
    store_first(y[m], acc, n);
  }
}

// Registers: 32 vectors with AVX-512 and NEON, 16 with AVX2 and SSE; accumulators must leave room for operands.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kTileRows = 4;
#else
constexpr int kTileRows = 2;
#endif
constexpr int kTileCols = 4;

}  // namespace livery
