// What an adapter's weights amount to: sums of squares, and ||B A|| of its low-rank pairs by Gram matrices.
//
// ||B A||^2 is the sum over all elements of (B^T B) * (A A^T); the traces of the two are ||B||^2 and ||A||^2. Pairs
// are shared out among threads, so that what a thread works on stays in its own cache.
#include <omp.h>

#include <algorithm>
#include <vector>

#include "vec.hpp"

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

namespace livery {

// Both mirrored by measure.py. `sum` and the like are results.
struct Values {
  const void* data;
  int64_t count, is_bf16;
  double sum;
};

struct Pair {
  const void *a, *b;  // [rank, in] and [out, rank], contiguous
  int64_t rank, in, out, is_bf16;
  double product, bound;
};

constexpr int64_t kDepth = 64;  // lines of a panel: one of rank 128 just fits the first cache
constexpr int kHeight = 8;
constexpr int64_t kWidthStep = kLanes > kHeight ? kLanes : kHeight;
constexpr int64_t kShort = 4096;  // values added up in fp32 before fp64 takes over

inline float widened(float value) { return value; }
inline float widened(Bf16 value) { return bit_cast<float>(static_cast<uint32_t>(value.bits) << 16); }

template <class T>
double squares(const T* data, int64_t count) {
  double total = 0.0;
  for (int64_t start = 0; start < count; start += kShort) {
    const int64_t end = std::min(count, start + kShort);
    Vec acc[4] = {};
    int64_t i = start;
    for (; i + 4 * kLanes <= end; i += 4 * kLanes)
      for (int v = 0; v < 4; ++v) {
        const Vec x = load(data + i + v * kLanes);
        acc[v] += x * x;
      }
    float rest = sum_lanes((acc[0] + acc[1]) + (acc[2] + acc[3]));
    for (; i < end; ++i) rest += widened(data[i]) * widened(data[i]);
    total += rest;
  }
  return total;
}

// A panel holds the values of a few rows x for each rank, as they are multiplied: one fp32 number, or where the
// processor can, two bf16 ones of neighbouring rows in a word, whose products it adds up in fp32.
template <class T>
struct Cells {
  typedef float Cell;
  static constexpr int64_t kRows = 1;
  static Cell along(const T* p, int64_t, int64_t) { return widened(p[0]); }
  static Vec add(Vec acc, const Cell* left, const Cell* right) { return acc + splat(*left) * load(right); }
};

#if defined(__AVX512BF16__) && !defined(__clang__)
template <>
struct Cells<Bf16> {
  typedef uint32_t Cell;
  static constexpr int64_t kRows = 2;
  static Cell along(const Bf16* p, int64_t step, int64_t rows) {
    return p[0].bits | (rows > 1 ? static_cast<uint32_t>(p[step].bits) << 16 : 0u);
  }
  static Vec add(Vec acc, const Cell* left, const Cell* right) {
    return (Vec)_mm512_dpbf16_ps((__m512)acc, (__m512bh)_mm512_set1_epi32(static_cast<int>(*left)),
                                 (__m512bh)_mm512_loadu_si512(right));
  }
};
#endif

// gram[i .. i+kHeight)[j .. j+V*kLanes) += sum over the panel's rows x of x[i..] * x[j..].
template <class T, int V>
inline void gram_tile(const typename Cells<T>::Cell* panel, int64_t depth, int64_t width, int64_t i, int64_t j,
                      float* gram) {
  Vec acc[kHeight][V];
  for (int m = 0; m < kHeight; ++m)
    for (int v = 0; v < V; ++v) acc[m][v] = load(gram + (i + m) * width + j + v * kLanes);
  for (int64_t k = 0; k < depth; ++k) {
    const auto* row = panel + k * width;
    for (int m = 0; m < kHeight; ++m)
      for (int v = 0; v < V; ++v) acc[m][v] = Cells<T>::add(acc[m][v], row + i + m, row + j + v * kLanes);
  }
  for (int m = 0; m < kHeight; ++m)
    for (int v = 0; v < V; ++v) store(gram + (i + m) * width + j + v * kLanes, acc[m][v]);
}

// Whatever lies on and below the diagonal is complete; above it nothing is promised.
template <class T>
inline void add_gram(const typename Cells<T>::Cell* panel, int64_t depth, int64_t width, float* gram) {
  for (int64_t i = 0; i < width; i += kHeight) {
    const int64_t end = i + kHeight;
    int64_t j = 0;
    for (; j + 2 * kLanes <= width && j < end; j += 2 * kLanes) gram_tile<T, 2>(panel, depth, width, i, j, gram);
    for (; j < end; j += kLanes) gram_tile<T, 1>(panel, depth, width, i, j, gram);
  }
}

// gram = X^T X for X [rows, rank], element (row, r) at x[row * row_step + r * rank_step].
template <class T>
void gram_of(const T* x, int64_t rows, int64_t row_step, int64_t rank, int64_t rank_step, int64_t width,
             std::vector<typename Cells<T>::Cell>& panel, std::vector<float>& gram) {
  constexpr int64_t kRows = Cells<T>::kRows;
  panel.assign(kDepth * width, {});
  gram.assign(width * width, 0.0f);
  for (int64_t first = 0; first < rows; first += kDepth * kRows) {
    const int64_t count = std::min(kDepth * kRows, rows - first), depth = (count + kRows - 1) / kRows;
    auto fill = [&](int64_t k, int64_t r) {
      panel[k * width + r] =
          Cells<T>::along(x + (first + k * kRows) * row_step + r * rank_step, row_step, count - k * kRows);
    };
    if (rank_step == 1) {  // in the order of the memory
      for (int64_t k = 0; k < depth; ++k)
        for (int64_t r = 0; r < rank; ++r) fill(k, r);
    } else {
      for (int64_t r = 0; r < rank; ++r)
        for (int64_t k = 0; k < depth; ++k) fill(k, r);
    }
    add_gram<T>(panel.data(), depth, width, gram.data());
  }
}

template <class T>
struct Scratch {
  std::vector<typename Cells<T>::Cell> panel;
  std::vector<float> gram_a, gram_b;
};

template <class T>
void measure(Pair& pair, Scratch<T>& scratch) {
  const int64_t rank = pair.rank, width = (rank + kWidthStep - 1) / kWidthStep * kWidthStep;
  gram_of(static_cast<const T*>(pair.a), pair.in, 1, rank, pair.in, width, scratch.panel, scratch.gram_a);
  gram_of(static_cast<const T*>(pair.b), pair.out, rank, rank, 1, width, scratch.panel, scratch.gram_b);
  double product = 0.0, a_sum = 0.0, b_sum = 0.0;
  for (int64_t i = 0; i < rank; ++i) {
    const float *x = scratch.gram_a.data() + i * width, *y = scratch.gram_b.data() + i * width;
    double below = 0.0;
    for (int64_t j = 0; j < i; ++j) below += static_cast<double>(x[j]) * y[j];
    product += 2.0 * below + static_cast<double>(x[i]) * y[i];
    a_sum += x[i];
    b_sum += y[i];
  }
  pair.product = product;
  pair.bound = a_sum * b_sum;
}

}  // namespace livery

extern "C" void livery_squares(livery::Values* values, int64_t count) {
#pragma omp parallel for schedule(dynamic)
  for (int64_t n = 0; n < count; ++n) {
    livery::Values& v = values[n];
    v.sum = v.is_bf16 ? livery::squares(static_cast<const livery::Bf16*>(v.data), v.count)
                      : livery::squares(static_cast<const float*>(v.data), v.count);
  }
}

extern "C" void livery_low_rank_squares(livery::Pair* pairs, int64_t count) {
#pragma omp parallel
  {
    livery::Scratch<float> single;
    livery::Scratch<livery::Bf16> half;
#pragma omp for schedule(dynamic)
    for (int64_t n = 0; n < count; ++n) {
      if (pairs[n].is_bf16)
        livery::measure(pairs[n], half);
      else
        livery::measure(pairs[n], single);
    }
  }
}

// For parallel work that the calling thread starts from now on, torch's included; other threads keep theirs.
extern "C" void livery_threads_here(int64_t count) { omp_set_num_threads(static_cast<int>(count)); }
