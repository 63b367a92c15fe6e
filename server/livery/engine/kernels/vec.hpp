// Short vectors of the machine's width, loads from fp32 and bf16, sums across lanes, and exp/tanh on vectors.
// Plain GCC/Clang vector extensions: one source serves AVX-512, AVX2, SSE and NEON. Nothing here allocates.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace livery {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef int32_t IntVec __attribute__((vector_size(kLanes * 4)));
typedef uint32_t WordVec __attribute__((vector_size(kLanes * 4)));
typedef uint16_t HalfVec __attribute__((vector_size(kLanes * 2)));

struct Bf16 {
  uint16_t bits;
};

template <class To, class From>
inline To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

inline Vec splat(float value) { return value - Vec{}; }

inline Vec load(const float* p) {
  Vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline Vec load(const Bf16* p) {
  // Compilers widen 16 values in three steps.
#if defined(__AVX512F__)
  const __m512i word = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__AVX2__)
  const __m256i word = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  HalfVec half;
  std::memcpy(&half, p, sizeof half);
  const WordVec word = __builtin_convertvector(half, WordVec);
#endif
  return bit_cast<Vec>(bit_cast<WordVec>(word) << 16);
}

inline void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }

// The first n < kLanes values, zeros after them; reads nothing beyond p[n - 1].
template <class T>
inline Vec load_first(const T* p, int64_t n) {
  T padded[kLanes] = {};
  std::memcpy(padded, p, n * sizeof(T));
  return load(padded);
}

inline void store_first(float* p, Vec v, int64_t n) { std::memcpy(p, &v, n * sizeof(float)); }

// Lane l of a halving step over blocks of B lanes: the low (Half = 0) or high (1) half of each block of the
// first operand, then the same half of the second operand's block.
template <int B, int Half>
constexpr int halving_source(int lane) {
  int block = lane / B, position = lane % B, half = B / 2;
  int source = block * B + position % half + Half * half;
  return position < half ? source : source + kLanes;
}

template <int B, int Half, int... Lane>
inline Vec pick(Vec a, Vec b, std::integer_sequence<int, Lane...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, halving_source<B, Half>(Lane)...);
#else
  return __builtin_shuffle(a, b, IntVec{halving_source<B, Half>(Lane)...});
#endif
}

// Sums of kLanes vectors at once: lane l of the result is the sum over all lanes of v[l]. Destroys v.
template <int B = kLanes>
inline Vec sums(Vec* v) {
  if constexpr (B == 1) {
    return v[0];
  } else {
    using Lanes = std::make_integer_sequence<int, kLanes>;
    for (int i = 0; i < B / 2; ++i) {
      Vec a = v[i], b = v[i + B / 2];
      v[i] = pick<B, 0>(a, b, Lanes{}) + pick<B, 1>(a, b, Lanes{});
    }
    return sums<B / 2>(v);
  }
}

// out[i] = sum over the lanes of v[i], for any N. Destroys v.
template <int N>
inline void sum_each(Vec* v, float* out) {
  constexpr int kWhole = N / kLanes * kLanes, kRest = N % kLanes;
  for (int i = 0; i < kWhole; i += kLanes) store(out + i, sums(v + i));
  if constexpr (kRest > 0) {
    Vec padded[kLanes] = {};
    for (int i = 0; i < kRest; ++i) padded[i] = v[kWhole + i];
    store_first(out + kWhole, sums(padded), kRest);
  }
}

// Lane l of one step of a transposition: pairs of rows `Step` apart swap the halves of each 2 * Step lanes.
template <int Step, bool High>
constexpr int swapped_source(int lane) {
  const bool from_second = lane & Step;
  if (High) return from_second ? kLanes + lane : lane + Step;
  return from_second ? kLanes + lane - Step : lane;
}

template <int Step, bool High, int... Lane>
inline Vec swap_halves(Vec a, Vec b, std::integer_sequence<int, Lane...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, swapped_source<Step, High>(Lane)...);
#else
  return __builtin_shuffle(a, b, IntVec{swapped_source<Step, High>(Lane)...});
#endif
}

// kLanes vectors as a square matrix, transposed in place.
template <int Step = kLanes / 2>
inline void transpose(Vec* rows) {
  using Lanes = std::make_integer_sequence<int, kLanes>;
  for (int i = 0; i < kLanes; ++i) {
    if (i & Step) continue;
    const Vec a = rows[i], b = rows[i + Step];
    rows[i] = swap_halves<Step, false>(a, b, Lanes{});
    rows[i + Step] = swap_halves<Step, true>(a, b, Lanes{});
  }
  if constexpr (Step > 1) transpose<Step / 2>(rows);
}

template <int Step, int... Lane>
inline Vec turned_by(Vec v, std::integer_sequence<int, Lane...>) {
#if defined(__clang__)
  return __builtin_shufflevector(v, v, (Lane ^ Step)...);
#else
  return __builtin_shuffle(v, IntVec{(Lane ^ Step)...});
#endif
}

// The largest lane, NaN being none.
template <int Step = kLanes / 2>
inline float max_lane(Vec v) {
  const Vec other = turned_by<Step>(v, std::make_integer_sequence<int, kLanes>{});
  v = v > other ? v : other;
  if constexpr (Step > 1)
    return max_lane<Step / 2>(v);
  else
    return v[0];
}

template <int Step = kLanes / 2>
inline float sum_lanes(Vec v) {
  v += turned_by<Step>(v, std::make_integer_sequence<int, kLanes>{});
  if constexpr (Step > 1)
    return sum_lanes<Step / 2>(v);
  else
    return v[0];
}

// e^x within 2 units in the last place for x <= 0; 0 below -87.3 (no denormals), NaN for NaN.
inline Vec exp_nonpositive(Vec x) {
  const Vec lowest = splat(-87.3f);
  Vec clamped = x < lowest ? lowest : x;
  // Adding 1.5 * 2^23 rounds to an integer, which then sits in the low bits of the sum.
  const Vec magic = splat(12582912.0f);
  Vec shifted = clamped * 1.44269504f + magic;
  Vec n = shifted - magic;
  Vec r = clamped - n * 0.693359375f + n * 2.12194440e-4f;
  Vec p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  WordVec bits = bit_cast<WordVec>(shifted);
  WordVec power = (bits << 23) + (127u << 23);
  Vec result = p * bit_cast<Vec>(power);
  return x < lowest ? Vec{} : result;
}

inline Vec tanh_vec(Vec x) {
  Vec size = x < 0.0f ? -x : x;
  Vec e = exp_nonpositive(-2.0f * size);
  Vec large = (1.0f - e) / (1.0f + e);
  // Near zero 1 - e cancels, so a polynomial in x^2 takes over.
  Vec z = x * x;
  Vec p = splat(-5.70498872745e-3f);
  p = p * z + 2.06390887954e-2f;
  p = p * z - 5.37397155531e-2f;
  p = p * z + 1.33314422036e-1f;
  p = p * z - 3.33332819422e-1f;
  Vec small = x + x * z * p;
  return size < 0.625f ? small : (x < 0.0f ? -large : large);
}

}  // namespace livery
