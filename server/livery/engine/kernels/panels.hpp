// How a weight lies in panels of kPanel output columns, and how it is widened to fp32 in registers. In all layouts
// a panel is one contiguous stretch, read in order of k:
//
//     fp32:        [k][kPanel]
//     bf16:        [k][kPanel], columns c and c + kLanes side by side
//     int8:        per 32 k:  fp16 scale[kPanel], int8 code[32][kPanel]                    w = scale * code
//     int4:        per 32 k:  fp16 scale[kPanel], fp16 least[kPanel], uint32 word[4][kPanel]
//                  code of k = 8 g + s in bits 4 s to 4 s + 3 of word[g]                   w = scale * code + least
//
// Products of an fp16 and a code are exact in fp32, so a weight is rounded once, as where it is written out in
// full: every layout gives the very fp32 numbers that its unpacked weight has. Mirrored by weights.py.
#pragma once

#include <algorithm>

#include "vec.hpp"

#if defined(__AVX2__) || defined(__F16C__)
#include <immintrin.h>
#endif

namespace livery {

constexpr int kPanelVecs = 2;
constexpr int kPanel = kPanelVecs * kLanes;
constexpr int kBlock = 32;  // k that share a scale
// Bytes to fetch ahead where a few rows' arithmetic per byte keeps the processor from looking far enough itself.
constexpr int64_t kAhead = 2048;

typedef int8_t ByteVec __attribute__((vector_size(kLanes)));

struct Half {
  uint16_t bits;
};

inline Vec load(const Half* p) {
#if defined(__AVX512F__)
  return bit_cast<Vec>(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
#elif defined(__F16C__)
  return bit_cast<Vec>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#else
  HalfVec half;
  std::memcpy(&half, p, sizeof half);
  WordVec word = __builtin_convertvector(half, WordVec);
  Vec size = bit_cast<Vec>((word & 0x7fffu) << 13) * 0x1p112f;  // puts the exponent right, subnormals too
  return bit_cast<Vec>(bit_cast<WordVec>(size) | (word & 0x8000u) << 16);
#endif
}

// The lowest four bits of each word, as floats.
inline Vec low_nibble(WordVec word) {
#if defined(__AVX512F__)
  const Vec numbers = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return bit_cast<Vec>(_mm512_permutexvar_ps(bit_cast<__m512i>(word), bit_cast<__m512>(numbers)));
#else
  return __builtin_convertvector(bit_cast<IntVec>(word & 15u), Vec);
#endif
}

inline Vec load_code(const int8_t* p) {
#if defined(__AVX512F__)
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return bit_cast<Vec>(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)));
#elif defined(__AVX2__)
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return bit_cast<Vec>(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)));
#else
  ByteVec bytes;
  std::memcpy(&bytes, p, sizeof bytes);
  return __builtin_convertvector(__builtin_convertvector(bytes, IntVec), Vec);
#endif
}

inline WordVec load_words(const char* p) {
  WordVec word;
  std::memcpy(&word, p, sizeof word);
  return word;
}

// Vectors of one kind, one for each kLanes columns of P panels.
template <int P, class T>
inline void load_columns(const char* row, int64_t stride, Vec (&to)[P * kPanelVecs]) {
  for (int p = 0; p < P; ++p)
    for (int v = 0; v < kPanelVecs; ++v)
      to[p * kPanelVecs + v] = load(reinterpret_cast<const T*>(row + p * stride) + v * kLanes);
}

// Each layout gives the bytes of a panel of k rows and calls use(i, w) for i from begin (a multiple of kBlock) to
// end, where w are the weights of row i in P panels that follow each other `stride` bytes apart.
struct Fp32 {
  static int64_t bytes(int64_t k) { return k * kPanel * 4; }

  template <int P, class Use>
  static inline void each(const char* panel, int64_t stride, int64_t begin, int64_t end, const Use& use) {
    const char* row = panel + bytes(begin);
    for (int64_t i = begin; i < end; ++i, row += bytes(1)) {
      Vec w[P * kPanelVecs];
      load_columns<P, float>(row, stride, w);
      use(i, w);
    }
  }
};

struct Bfloat16 {
  static int64_t bytes(int64_t k) { return k * kPanel * 2; }

  template <int P, class Use>
  static inline void each(const char* panel, int64_t stride, int64_t begin, int64_t end, const Use& use) {
    static_assert(kPanelVecs == 2);
    const char* row = panel + bytes(begin);
    for (int64_t i = begin; i < end; ++i, row += bytes(1)) {
      Vec w[P * kPanelVecs];
      for (int p = 0; p < P; ++p) {
        __builtin_prefetch(row + p * stride + kAhead);
        const WordVec pair = load_words(row + p * stride);
        w[p * 2] = bit_cast<Vec>(pair << 16);
        w[p * 2 + 1] = bit_cast<Vec>(pair & 0xffff0000u);
      }
      use(i, w);
    }
  }
};

struct Int8 {
  static constexpr int64_t kBytes = kPanel * (2 + kBlock);
  static int64_t bytes(int64_t k) { return (k + kBlock - 1) / kBlock * kBytes; }

  template <int P, class Use>
  static inline void each(const char* panel, int64_t stride, int64_t begin, int64_t end, const Use& use) {
    const char* block = panel + begin / kBlock * kBytes;
    for (int64_t i = begin; i < end; block += kBytes) {
      Vec scale[P * kPanelVecs];
      load_columns<P, Half>(block, stride, scale);
      const char* codes = block + kPanel * 2;
      for (const int64_t stop = std::min(i + kBlock, end); i < stop; ++i, codes += kPanel) {
        Vec w[P * kPanelVecs];
        for (int p = 0; p < P; ++p) {
          __builtin_prefetch(codes + p * stride + kAhead);
          for (int v = 0; v < kPanelVecs; ++v) {
            const int at = p * kPanelVecs + v;
            w[at] = load_code(reinterpret_cast<const int8_t*>(codes + p * stride) + v * kLanes) * scale[at];
          }
        }
        use(i, w);
      }
    }
  }
};

struct Int4 {
  static constexpr int kWord = 8;  // codes in a word
  static constexpr int64_t kBytes = kPanel * (2 + 2 + kBlock / 2);
  static int64_t bytes(int64_t k) { return (k + kBlock - 1) / kBlock * kBytes; }

  template <int P, class Use>
  static inline void each(const char* panel, int64_t stride, int64_t begin, int64_t end, const Use& use) {
    const char* block = panel + begin / kBlock * kBytes;
    for (int64_t i = begin; i < end; block += kBytes) {
      Vec scale[P * kPanelVecs], least[P * kPanelVecs];
      load_columns<P, Half>(block, stride, scale);
      load_columns<P, Half>(block + kPanel * 2, stride, least);
      const char* words = block + kPanel * 4;
      for (const int64_t stop = std::min(i + kBlock, end); i < stop; words += kPanel * 4) {
        WordVec word[P * kPanelVecs];
        for (int p = 0; p < P; ++p)
          for (int v = 0; v < kPanelVecs; ++v) {
            __builtin_prefetch(words + p * stride + v * kLanes * 4 + kAhead);
            word[p * kPanelVecs + v] = load_words(words + p * stride + v * kLanes * 4);
          }
        if (stop - i >= kWord) {
          for (int s = 0; s < kWord; ++s, ++i) next<P>(i, scale, least, word, use);
        } else {
          for (; i < stop; ++i) next<P>(i, scale, least, word, use);
        }
      }
    }
  }

 private:
  template <int P, class Use>
  static inline void next(int64_t i, const Vec (&scale)[P * kPanelVecs], const Vec (&least)[P * kPanelVecs],
                          WordVec (&word)[P * kPanelVecs], const Use& use) {
    Vec w[P * kPanelVecs];
    for (int at = 0; at < P * kPanelVecs; ++at) {
      w[at] = low_nibble(word[at]) * scale[at] + least[at];
      word[at] >>= 4;
    }
    use(i, w);
  }
};

}  // namespace livery
