// Register tiles shared by the kernels: dot products of a few rows with a few rows, weighted sums of rows.
#pragma once

#include <type_traits>

#include "vec.hpp"

namespace livery {

// Accumulators must leave registers for operands: 32 vectors with AVX-512 and NEON, 16 with AVX2 and SSE.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kTileRows = 6;
#else
constexpr int kTileRows = 2;
#endif
constexpr int kTileCols = 4;

// Keeps a loaded vector in its register: compilers otherwise load it again for each product it takes part in.
inline Vec held(Vec v) {
#if defined(__x86_64__)
  asm("" : "+v"(v));
#elif defined(__aarch64__)
  asm("" : "+w"(v));
#endif
  return v;
}

template <class F, int... I>
inline void with_height(int64_t first, int64_t height, const F& f, std::integer_sequence<int, I...>) {
  ((height == I + 1 ? f(first, std::integral_constant<int, I + 1>{}) : void()), ...);
}

// Calls f(first, M) for tiles of nearly equal height that cover `rows`; M is a constant type of at most Most.
template <int Most = kTileRows, class F>
inline void for_row_tiles(int64_t rows, const F& f) {
  const int64_t tiles = (rows + Most - 1) / Most;
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t first = rows * t / tiles, last = rows * (t + 1) / tiles;
    with_height(first, last - first, f, std::make_integer_sequence<int, Most>{});
  }
}

// Adds to acc[m * N + n] the products of the last k < kLanes values.
template <int M, int N, class T>
__attribute__((noinline)) void dot_rest(const float* const* x, const T* const* w, int64_t i, int64_t k,
                                        Vec* acc) {
  for (int n = 0; n < N; ++n) {
    const Vec b = load_first(w[n] + i, k);
    for (int m = 0; m < M; ++m) acc[m * N + n] += load_first(x[m] + i, k) * b;
  }
}

// out[m * N + n] = <x[m], w[n]> over k values; every element is read once. Where the rows of w follow each
// other and more tiles come, Ahead > 0 fetches from the tile that many further on.
template <int M, int N, int Ahead, class T>
inline void dot_tile(const float* const (&x)[M], const T* const (&w)[N], int64_t k, float* out) {
  Vec acc[M][N];
  for (int m = 0; m < M; ++m)
    for (int n = 0; n < N; ++n) acc[m][n] = splat(0.0f);
  int64_t i = 0;
  for (; i + kLanes <= k; i += kLanes) {
    Vec b[N];
    for (int n = 0; n < N; ++n) {
      b[n] = load(w[n] + i);
      if constexpr (Ahead > 0) __builtin_prefetch(w[n] + i + Ahead * N * k);
    }
    for (int m = 0; m < M; ++m) {
      const Vec a = held(load(x[m] + i));
      for (int n = 0; n < N; ++n) acc[m][n] += a * b[n];
    }
  }
  Vec flat[M * N];
  for (int m = 0; m < M; ++m)
    for (int n = 0; n < N; ++n) flat[m * N + n] = acc[m][n];
  if (i < k) dot_rest<M, N>(x, w, i, k - i, flat);
  sum_each<M * N>(flat, out);
}

// y[m][0 .. V * kLanes) += sum over j < count of h[m][j] * b(j)[...], where b(j) points at a row of values.
// Ahead > 0 fetches from the tile of columns that many further on.
template <int M, int V, int Ahead, class Row>
inline void axpy_tile(float* const (&y)[M], const float* const (&h)[M], int64_t count, const Row& b) {
  Vec acc[M][V];
  for (int m = 0; m < M; ++m)
    for (int v = 0; v < V; ++v) acc[m][v] = load(y[m] + v * kLanes);
  for (int64_t j = 0; j < count; ++j) {
    Vec row[V];
    for (int v = 0; v < V; ++v) {
      row[v] = load(b(j) + v * kLanes);
      if constexpr (Ahead > 0) __builtin_prefetch(b(j) + (Ahead * V + v) * kLanes);
    }
    for (int m = 0; m < M; ++m) {
      const Vec a = held(splat(h[m][j]));
      for (int v = 0; v < V; ++v) acc[m][v] += a * row[v];
    }
  }
  for (int m = 0; m < M; ++m)
    for (int v = 0; v < V; ++v) store(y[m] + v * kLanes, acc[m][v]);
}

// The same for the last n < kLanes columns.
template <int M, class Row>
__attribute__((noinline)) void axpy_rest(float* const (&y)[M], const float* const (&h)[M], int64_t count,
                                         const Row& b, int64_t n) {
  for (int m = 0; m < M; ++m) {
    Vec acc = load_first(y[m], n);
    for (int64_t j = 0; j < count; ++j) acc += h[m][j] * load_first(b(j), n);
    store_first(y[m], acc, n);
  }
}

// axpy over any number of columns: y[m] and b(j) point at the first.
template <int M, int Ahead, class Row>
inline void axpy_rows(float* const (&y)[M], const float* const (&h)[M], int64_t count, const Row& b,
                      int64_t columns) {
  constexpr int kVecs = M == 1 ? 8 : 4;
  float* at[M];
  int64_t c = 0;
  auto row = [&](int64_t j) { return b(j) + c; };
  auto move = [&] {
    for (int m = 0; m < M; ++m) at[m] = y[m] + c;
  };
  for (move(); c + kVecs * kLanes <= columns; c += kVecs * kLanes, move())
    axpy_tile<M, kVecs, Ahead>(at, h, count, row);
  for (; c + kLanes <= columns; c += kLanes, move()) axpy_tile<M, 1, 0>(at, h, count, row);
  if (c < columns) axpy_rest<M>(at, h, count, row, columns - c);
}

}  // namespace livery
