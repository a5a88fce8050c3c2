// Products of a few rows with a packed matrix of stream.h.
//
// A step reads each weight once, so with one row the speed is that of reading memory, and narrow
// weights are widened in registers. Up to kMaxRows rows use each vector of weights that was loaded.
// Every row is summed up in the same order whatever the number of rows, so that the steps of run()
// have the bits of single steps.
#pragma once

#include "formats.h"
#include "stream.h"

#if defined(__AVX2__) && !defined(__AVX512F__)
#include <immintrin.h>
#endif

// VPDPBUSD is no part of the instruction sets that the kernels are compiled for: the functions that
// use it are compiled for it one by one, and chosen at run time.
#if defined(FASTLSTM_AVX512)
#define FASTLSTM_VNNI "avx512vnni"
#elif defined(__AVX2__) && !defined(FASTLSTM_VECTOR_BYTES) && __GNUC__ >= 11
#define FASTLSTM_VNNI "avxvnni"
#endif

namespace fastlstm::cpu {
namespace {

using StreamSimd = Simd<float>;
using Vector = StreamSimd::Value;
using Bits = StreamSimd::Bits;
constexpr int64_t kUnits = StreamSimd::kLanes;  // of a panel of gates
constexpr int64_t kPanel = 4 * kUnits;          // words of a panel at one place in depth

// A sum is in one register over this depth, and then added to memory. One sum over the whole depth
// would round more.
constexpr int64_t kStreamDepth = 256;

// A row of numbers as 16-bit integers plus 32768: `scale` times (256 high + low - 32768). The bytes
// lie as the weights do, four neighbours a word.
struct QuantizedRow {
  const uint32_t *high, *low;
  float scale;
};

// Rows of numbers, padded with zeros; quantized too if the product takes them so.
struct Rows {
  int64_t count;
  const float* const* numbers;
  const QuantizedRow* quantized;
};

FASTLSTM_INLINE Vector load(const float* from) { return StreamSimd::load(from, AllLanes{}); }
FASTLSTM_INLINE void store(float* to, Vector value) { StreamSimd::store(to, value, AllLanes{}); }

// The numbers at one place in depth, `part` of the words. Shifts to the right copy the sign.
template <WeightType kType>
FASTLSTM_INLINE Vector unpack(Bits words, int part) {
  if constexpr (kType == WeightType::float32) return (Vector)words;
  if constexpr (kType == WeightType::bfloat16) {
    return (Vector)(part ? words & int32_t(0xffff0000) : words << 16);
  }
  return __builtin_convertvector(words << (24 - 8 * part) >> 24, Vector);
}

// Keeps words in a register between their parts. The compiler would load them again for each part,
// and a core loads one vector of 64 bytes a cycle, as many as it multiplies.
template <WeightType kType, int kRows>
FASTLSTM_INLINE void load_once(Bits& words) {
#if defined(FASTLSTM_AVX512)
  if constexpr (kType != WeightType::float32 && kRows <= 4) asm("" : "+v"(words));
#endif
}

// Where the sums of a block of rows are: those of a panel are `stride` numbers after those of the
// panel before, and rows follow each other. Products are added to `initial`, which has one row of
// numbers a panel, or to the sums if it is null.
struct Sums {
  float* data;
  int64_t stride;
  const float* initial;

  Sums at(int64_t panel, int64_t row) const {
    return {data + panel * stride + row * kPanel, stride,
            initial ? initial + panel * kPanel : nullptr};
  }
};

// sums[panel][row] = initial[panel], or += , row x panel of the matrix, for kPanels neighbours. Two
// multiply-add units of latency 4 need 8 sums to be busy: a single row takes two panels at a time.
template <WeightType kType, int kRows, int kPanels>
__attribute__((noinline)) void multiply(const StreamMatrix& matrix, int64_t panel,
                                        const float* const* rows, const Sums& sums) {
  constexpr int64_t kPerWord = numbers_per_word(kType);
  const int64_t words = matrix.words_of_depth(kType);
  const Bits* weights[kPanels];
  for (int p = 0; p < kPanels; ++p) {
    weights[p] = reinterpret_cast<const Bits*>(matrix.words + (panel + p) * words * kPanel);
    for (int64_t i = 0; i < kRows * kPanel; i += 64 / sizeof(float)) {
      __builtin_prefetch(sums.data + p * sums.stride + i, 1);
    }
  }
  for (int64_t begin = 0; begin < words; begin += kStreamDepth / kPerWord) {
    const int64_t end = lesser(words, begin + kStreamDepth / kPerWord);
    Vector sum[kPanels][kRows][4] = {};
    for (int64_t k = begin; k < end; ++k) {
#pragma GCC unroll 2
      for (int p = 0; p < kPanels; ++p) {
        Bits words_at[4];
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v) {
          words_at[v] = weights[p][k * 4 + v];
          load_once<kType, kRows>(words_at[v]);
        }
#pragma GCC unroll 4
        for (int part = 0; part < kPerWord; ++part) {
          Vector w[4];
#pragma GCC unroll 4
          for (int v = 0; v < 4; ++v) w[v] = unpack<kType>(words_at[v], part);
#pragma GCC unroll 6
          for (int r = 0; r < kRows; ++r) {
            const float a = rows[r][k * kPerWord + part];
#pragma GCC unroll 4
            for (int v = 0; v < 4; ++v) sum[p][r][v] += a * w[v];
          }
        }
      }
    }
    for (int p = 0; p < kPanels; ++p) {
      for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v) {
          float* to = sums.data + p * sums.stride + r * kPanel + v * kUnits;
          const bool begins = begin == 0 && sums.initial;
          const float* before = begins ? sums.initial + p * kPanel + v * kUnits : to;
          Vector all = sum[p][r][v];
          if constexpr (kType == WeightType::int8) {
            all *= load(matrix.scale + (panel + p) * kPanel + v * kUnits);
          }
          store(to, load(before) + all);
        }
      }
    }
  }
}

#if defined(FASTLSTM_VNNI)
// The same for int8 weights and quantized rows, with VPDPBUSD. It multiplies four unsigned bytes,
// here those of the row, with four signed ones, and adds the products to an int32. Such a sum
// overflows after 16,577 words.
template <int kRows>
__attribute__((noinline, target(FASTLSTM_VNNI))) void multiply_quantized(const StreamMatrix& matrix,
                                                                         int64_t panel,
                                                                         const QuantizedRow* rows,
                                                                         const Sums& sums) {
  constexpr int64_t kMostWords = 16000;
  const int64_t words = matrix.words_of_depth(WeightType::int8);
  const float* scale = matrix.scale + panel * kPanel;
  const float* offset = matrix.offset + panel * kPanel;
  const Bits* weights = reinterpret_cast<const Bits*>(matrix.words + panel * words * kPanel);
  for (int64_t begin = 0; begin < words; begin += kMostWords) {
    const int64_t end = lesser(words, begin + kMostWords);
    Bits high[kRows][4] = {}, low[kRows][4] = {};
    for (int64_t k = begin; k < end; ++k) {
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) {
        const Bits w = weights[k * 4 + v];
#pragma GCC unroll 3
        for (int r = 0; r < kRows; ++r) {
#if defined(FASTLSTM_AVX512)
          high[r][v] = (Bits)_mm512_dpbusd_epi32(
              (__m512i)high[r][v], _mm512_set1_epi32(int(rows[r].high[k])), (__m512i)w);
          low[r][v] = (Bits)_mm512_dpbusd_epi32((__m512i)low[r][v],
                                                _mm512_set1_epi32(int(rows[r].low[k])), (__m512i)w);
#else
          high[r][v] = (Bits)_mm256_dpbusd_avx_epi32(
              (__m256i)high[r][v], _mm256_set1_epi32(int(rows[r].high[k])), (__m256i)w);
          low[r][v] = (Bits)_mm256_dpbusd_avx_epi32(
              (__m256i)low[r][v], _mm256_set1_epi32(int(rows[r].low[k])), (__m256i)w);
#endif
        }
      }
    }
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) {
        float* to = sums.data + r * kPanel + v * kUnits;
        const float* before = begin == 0 && sums.initial ? sums.initial + v * kUnits : to;
        Vector all = __builtin_convertvector(high[r][v], Vector) * 256 +
                     __builtin_convertvector(low[r][v], Vector);
        if (begin == 0) all += load(offset + v * kUnits);
        store(to, load(before) + all * (load(scale + v * kUnits) * rows[r].scale));
      }
    }
  }
}
#endif

// Quantizes a row of numbers, padded to kPadding with zeros, to high and low bytes. A NaN or an
// infinity makes the scale NaN, and with it the row's results.
inline float quantize(const float* numbers, int64_t count, uint8_t* high, uint8_t* low) {
  typedef uint8_t Bytes __attribute__((vector_size(kUnits), aligned(1), may_alias));
  Vector most = {}, check = {};
  for (int64_t k = 0; k < count; k += kUnits) {
    const Vector value = load(numbers + k), size = (Vector)((Bits)value & 0x7fffffff);
    most = size > most ? size : most;
    check += value * 0;
  }
  float largest = 0, zero = 0;
  for (int lane = 0; lane < kUnits; ++lane) {
    largest = most[lane] > largest ? most[lane] : largest;
    zero += check[lane];
  }
  // Below 1e-33 the inverse could overflow; such a row is as good as zero.
  const float inverse = largest > 1e-33f ? 32767 / largest : 0;
  for (int64_t k = 0; k < count; k += kUnits) {
    // The low bits of x + kRound are the integer nearest to x.
    const Bits integer = (Bits)(load(numbers + k) * inverse + Exponential<float>::kRound);
    const Bits positive = integer + 32768;
    *reinterpret_cast<Bytes*>(high + k) = __builtin_convertvector(positive >> 8 & 255, Bytes);
    *reinterpret_cast<Bytes*>(low + k) = __builtin_convertvector(positive & 255, Bytes);
  }
  return largest / 32767 + zero;
}

}  // namespace
}  // namespace fastlstm::cpu
