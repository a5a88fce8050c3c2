// The innermost loop: multiplies a few rows by one packed strip, with all sums in registers.
//
// A strip is [depth][kColumns vectors]. With 32 vector registers 6 rows are multiplied by 4 vectors
// at a time: 24 multiply-adds for 10 loads. With 16 registers it is 6 rows by 2 vectors: 12
// multiply-adds for 8 loads, and a strip of 256 words fills half of a 32 KiB L1. (3 rows by 4
// vectors would take 7 loads, but the strip would fill all of L1.)
// A word of bfloat16 holds two numbers, neighbours in depth: one instruction where the machine has
// it, otherwise two multiply-adds in float.
#pragma once

#include "formats.h"

namespace fastlstm::cpu {
namespace {

// The words of a row, which may be unaligned. Functions name this type in full, because a template
// argument would lose its attributes.
template <class S>
struct RowOf {
  typedef Word<S> Row __attribute__((aligned(alignof(S)), may_alias));
};

// Broadcasts a word to every lane. The empty asm stops the compiler from shifting or masking the
// word before the broadcast, in integer registers, which halves the speed.
FASTLSTM_INLINE Simd<float>::Bits spread(uint32_t word) {
  Simd<float>::Bits bits = static_cast<int32_t>(word) - Simd<float>::Bits{};
#if defined(__x86_64__) && !defined(FASTLSTM_VECTOR_BYTES)
  asm("" : "+x"(bits));
#endif
  return bits;
}

// The compiler would load a vector again for each of two or three rows that it is multiplied with:
// as many loads as multiply-adds, on machines with one 64-byte load a cycle.
template <int kRows, class Vector>
FASTLSTM_INLINE void keep_in_register(Vector& vector) {
#if defined(FASTLSTM_AVX512)
  if (kRows == 2 || kRows == 3) asm("" : "+v"(vector));
#endif
}

// sum += row[r][at] * b. The strip's vectors are loaded once and each row's word is broadcast.
template <class S, int kRows, int kVectors, class Vector>
FASTLSTM_INLINE void multiply_add(const typename RowOf<S>::Row* const* row, int64_t at,
                                  const Vector* b, Vector (&sum)[kRows][kVectors]) {
  if constexpr (!std::is_same_v<S, BFloat16>) {
    Vector strip[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      strip[v] = b[v];
      keep_in_register<kRows>(strip[v]);
    }
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sum[r][v] += row[r][at] * strip[v];
    }
  } else {
    using Bits = typename Simd<float>::Bits;
    Bits strip[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      strip[v] = reinterpret_cast<const Bits*>(b)[v];
      keep_in_register<kRows>(strip[v]);
    }
#if defined(__AVX512BF16__)
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
      const auto a = (__m512bh)_mm512_set1_epi32(static_cast<int32_t>(row[r][at]));
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        sum[r][v] = (Vector)_mm512_dpbf16_ps((__m512)sum[r][v], a, (__m512bh)strip[v]);
      }
    }
#else
    // As float, the number in a word's upper half needs the lower half cleared, that in the lower
    // half a shift. One half at a time, because 16 registers hold no more.
    Vector half[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) half[v] = (Vector)(strip[v] << 16);
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
      const Vector a = (Vector)(spread(row[r][at]) << 16);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sum[r][v] += a * half[v];
    }
    asm volatile("" : : : "memory");
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) half[v] = (Vector)(strip[v] & int32_t(0xffff0000));
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
      const Vector a = (Vector)(spread(row[r][at]) & int32_t(0xffff0000));
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sum[r][v] += a * half[v];
    }
#endif
  }
}

// The spacing of a row's words: `step` apart in runs of kRun, and `gap` more between runs.
// Contiguous rows have {1, 0}.
struct Spacing {
  int64_t step, gap;
};

// c[r] (kVectors vectors, anywhere in memory) = or += rows[r] (depth) x strip (depth, kVectors
// vectors). Two units of latency 4 need 8 independent sums to be busy. If there are fewer rows than
// that takes, they have several sets of sums, which take turns along the depth. Prefetches `ahead`,
// the strip that is multiplied next. It is null if that is in L2 anyway: with one or two rows the
// prefetches cost 15%. Several sets are added in another order than one set, so the bits of a row
// depend on the number of rows in its block. From kAlikeRows rows on they do not: all blocks then
// have 4 to 6 rows.
constexpr int64_t kAlikeRows = 8;
template <class S, int kRows, int kVectors>
__attribute__((noinline)) void multiply_rows(const S* const* rows, Spacing spacing,
                                             const Word<S>* strip, const Word<S>* ahead,
                                             int64_t depth, Sum<S>* const* c, bool add) {
  using V = Simd<Sum<S>>;
  using Vector = typename V::Value;
  using Row = typename RowOf<S>::Row;
  constexpr int kPerWord = Format<S>::kPerWord;
  constexpr int kChains = kRows * kVectors, kSets = kChains >= 8 ? 1 : kChains >= 4 ? 2 : 4;

  const Row* row[kRows];
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) {
    row[r] = reinterpret_cast<const Row*>(rows[r]);
    for (int v = 0; v < kVectors * kVectorBytes; v += 64) {
      __builtin_prefetch(reinterpret_cast<const char*>(c[r]) + v, 1);
    }
  }
  const Vector* b = reinterpret_cast<const Vector*>(strip);
  Vector sum[kSets][kRows][kVectors] = {};
  const int64_t words = depth / kPerWord;
  int64_t at = 0;
  const char* next = reinterpret_cast<const char*>(ahead);
  for (int64_t run = kRun; run <= words; run += kRun, at += spacing.gap) {
    for (int64_t k = 0; k < kRun; k += kSets, b += kSets * kVectors) {
#pragma GCC unroll 4
      for (int set = 0; set < kSets; ++set, at += spacing.step) {
        if (ahead) {
#pragma GCC unroll 4
          for (int v = 0; v < kVectors * kVectorBytes; v += 64) __builtin_prefetch(next + v, 0, 2);
          next += kVectors * kVectorBytes;
        }
        multiply_add<S, kRows, kVectors>(row, at, b + set * kVectors, sum[set]);
      }
    }
  }
  for (int64_t k = words / kRun * kRun; k < words; ++k, at += spacing.step, b += kVectors) {
    multiply_add<S, kRows, kVectors>(row, at, b, sum[0]);
  }
  if constexpr (kPerWord == 2) {
    if (depth % 2) {  // the last word of an odd row, which must not be read beyond its end
      Row last[kRows];
      const Row* last_row[kRows];
      for (int r = 0; r < kRows; ++r) {
        last[r] = reinterpret_cast<const S*>(row[r] + at)->bits;
        last_row[r] = &last[r];
      }
      multiply_add<S, kRows, kVectors>(last_row, 0, b, sum[0]);
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
#pragma GCC unroll 4
      for (int set = 1; set < kSets; ++set) sum[0][r][v] += sum[set][r][v];
      Sum<S>* to = c[r] + v * V::kLanes;
      if (add) sum[0][r][v] += V::load(to, AllLanes{});
      V::store(to, sum[0][r][v], AllLanes{});
    }
  }
}

template <class S, int kRows, int kVectors = kColumns>
FASTLSTM_INLINE void multiply(int vectors, const S* const* rows, Spacing spacing,
                              const Word<S>* strip, const Word<S>* ahead, int64_t depth,
                              Sum<S>* const* c, bool add) {
  if constexpr (kVectors > 1) {
    if (vectors < kVectors) {
      return multiply<S, kRows, kVectors - 1>(vectors, rows, spacing, strip, ahead, depth, c, add);
    }
  }
  multiply_rows<S, kRows, kVectors>(rows, spacing, strip, ahead, depth, c, add);
}

// The same for up to kMaxRows rows and a strip of `vectors` vectors, as vectors_of() says.
template <class S>
FASTLSTM_INLINE void multiply(int count, int vectors, const S* const* rows, Spacing spacing,
                              const Word<S>* strip, const Word<S>* ahead, int64_t depth,
                              Sum<S>* const* c, bool add) {
  switch (count) {
    case 1:
      return multiply<S, 1>(vectors, rows, spacing, strip, ahead, depth, c, add);
    case 2:
      return multiply<S, 2>(vectors, rows, spacing, strip, ahead, depth, c, add);
    case 3:
      return multiply<S, 3>(vectors, rows, spacing, strip, ahead, depth, c, add);
    case 4:
      return multiply<S, 4>(vectors, rows, spacing, strip, ahead, depth, c, add);
    case 5:
      return multiply<S, 5>(vectors, rows, spacing, strip, ahead, depth, c, add);
    case 6:
      return multiply<S, 6>(vectors, rows, spacing, strip, ahead, depth, c, add);
  }
}

}  // namespace
}  // namespace fastlstm::cpu
