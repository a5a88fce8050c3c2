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

// The rows of a product as the loop goes along their depth: word(r) is the current word of row r.

// Rows that lie anywhere in memory, each contiguous.
template <class S, int kRows>
struct RowsApart {
  using Row = typename RowOf<S>::Row;
  FASTLSTM_INLINE explicit RowsApart(const S* const* rows) {
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) row[r] = reinterpret_cast<const Row*>(rows[r]);
  }
  FASTLSTM_INLINE Word<S> word(int r) const { return row[r][at]; }
  FASTLSTM_INLINE void next() { ++at; }
  FASTLSTM_INLINE void next_run() {}

  const Row* row[kRows];
  int64_t at = 0;
};

// Rows that were packed: a word of one row lies kApart words before that of the next row, and kStep
// words before the next word of its row. After each run of kRun words kGap more are skipped. One
// pointer serves all rows, so the loop has enough registers for addresses: on Zen 1 it is 1% faster
// with a depth of 256, and 2% with 128.
template <class S, int kApart, int kStep, int kGap>
struct RowsTogether {
  FASTLSTM_INLINE explicit RowsTogether(const Word<S>* rows) : at(rows) {}
  FASTLSTM_INLINE Word<S> word(int r) const { return at[r * kApart]; }
  FASTLSTM_INLINE void next() { at += kStep; }
  FASTLSTM_INLINE void next_run() { at += kGap; }

  const Word<S>* at;
};

// What multiply() takes: rows as they lie, a block of pack_row_blocks, or a sliver of pack_slivers.
template <class S>
struct FarRows {
  const S* const* rows;
  template <int kRows>
  using Words = RowsApart<S, kRows>;
};
template <class S>
struct RowBlock {
  const Word<S>* rows;
  template <int kRows>
  using Words = RowsTogether<S, kRun, 1, (kRows - 1) * kRun>;
};
template <class S>
struct Sliver {
  const Word<S>* rows;
  template <int kRows>
  using Words = RowsTogether<S, 1, kMaxRows<S>, 0>;
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

// sum += rows * b. The strip's vectors are loaded once and each row's word is broadcast.
template <class S, int kRows, int kVectors, class Words, class Vector>
FASTLSTM_INLINE void multiply_add(const Words& rows, const Vector* b,
                                  Vector (&sum)[kRows][kVectors]) {
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
      for (int v = 0; v < kVectors; ++v) sum[r][v] += rows.word(r) * strip[v];
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
      const auto a = (__m512bh)_mm512_set1_epi32(static_cast<int32_t>(rows.word(r)));
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
      const Vector a = (Vector)(spread(rows.word(r)) << 16);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sum[r][v] += a * half[v];
    }
    asm volatile("" : : : "memory");
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) half[v] = (Vector)(strip[v] & int32_t(0xffff0000));
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
      const Vector a = (Vector)(spread(rows.word(r)) & int32_t(0xffff0000));
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sum[r][v] += a * half[v];
    }
#endif
  }
}

// What a product prefetches into L2 while it goes along its first `runs` runs: the words of a strip
// that is multiplied later.
template <class S>
struct Ahead {
  const Word<S>* strip = nullptr;
  int64_t runs = 0;
};

// c[r] (kVectors vectors, anywhere in memory) = or += rows (depth) x strip (depth, kVectors
// vectors). Two units of latency 4 need 8 independent sums to be busy. If there are fewer rows than
// that takes, they have several sets of sums, which take turns along the depth. Several sets are
// added in another order than one set, so the bits of a row depend on the number of rows in its
// block. From kAlikeRows rows on they do not: all blocks then have 4 to 6 rows.
constexpr int64_t kAlikeRows = 8;
template <class S, int kRows, int kVectors, class Rows>
__attribute__((noinline)) void multiply_rows(Rows from, const Word<S>* strip, Ahead<S> ahead,
                                             int64_t depth, Sum<S>* const* c, bool add) {
  using V = Simd<Sum<S>>;
  using Vector = typename V::Value;
  constexpr int kPerWord = Format<S>::kPerWord;
  constexpr int kChains = kRows * kVectors, kSets = kChains >= 8 ? 1 : kChains >= 4 ? 2 : 4;

  typename Rows::template Words<kRows> rows(from.rows);
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors * kVectorBytes; v += 64) {
      __builtin_prefetch(reinterpret_cast<const char*>(c[r]) + v, 1);
    }
  }
  const Vector* b = reinterpret_cast<const Vector*>(strip);
  Vector sum[kSets][kRows][kVectors] = {};
  const int64_t words = depth / kPerWord;
  const char* next = reinterpret_cast<const char*>(ahead.strip);
  for (int64_t run = kRun; run <= words; run += kRun, rows.next_run()) {
    const bool fetches = ahead.runs-- > 0;
#pragma GCC unroll 4
    for (int64_t k = 0; k < kRun; k += kSets, b += kSets * kVectors) {
#pragma GCC unroll 4
      for (int set = 0; set < kSets; ++set, rows.next()) {
        if (fetches) {
#pragma GCC unroll 4
          for (int v = 0; v < kVectors * kVectorBytes; v += 64) __builtin_prefetch(next + v, 0, 2);
          next += kVectors * kVectorBytes;
        }
        multiply_add<S, kRows, kVectors>(rows, b + set * kVectors, sum[set]);
      }
    }
  }
  for (int64_t k = words / kRun * kRun; k < words; ++k, rows.next(), b += kVectors) {
    multiply_add<S, kRows, kVectors>(rows, b, sum[0]);
  }
  if constexpr (kPerWord == 2 && std::is_same_v<Rows, FarRows<S>>) {
    if (depth % 2) {  // the last word of an odd row, which must not be read beyond its end
      S last[kRows][2] = {};
      const S* last_rows[kRows];
      for (int r = 0; r < kRows; ++r) {
        last[r][0] = reinterpret_cast<const S*>(rows.row[r] + rows.at)[0];
        last_rows[r] = last[r];
      }
      multiply_add<S, kRows, kVectors>(RowsApart<S, kRows>(last_rows), b, sum[0]);
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

template <class S, int kRows, int kVectors = kColumns, class Rows>
FASTLSTM_INLINE void multiply(int vectors, Rows rows, const Word<S>* strip, Ahead<S> ahead,
                              int64_t depth, Sum<S>* const* c, bool add) {
  if constexpr (kVectors > 1) {
    if (vectors < kVectors) {
      return multiply<S, kRows, kVectors - 1>(vectors, rows, strip, ahead, depth, c, add);
    }
  }
  multiply_rows<S, kRows, kVectors>(rows, strip, ahead, depth, c, add);
}

// The same for up to kMaxRows rows and a strip of `vectors` vectors, as vectors_of() says.
template <class S, class Rows>
FASTLSTM_INLINE void multiply(int count, int vectors, Rows rows, const Word<S>* strip,
                              Ahead<S> ahead, int64_t depth, Sum<S>* const* c, bool add) {
  switch (count) {
    case 1:
      return multiply<S, 1>(vectors, rows, strip, ahead, depth, c, add);
    case 2:
      return multiply<S, 2>(vectors, rows, strip, ahead, depth, c, add);
    case 3:
      return multiply<S, 3>(vectors, rows, strip, ahead, depth, c, add);
    case 4:
      return multiply<S, 4>(vectors, rows, strip, ahead, depth, c, add);
    case 5:
      return multiply<S, 5>(vectors, rows, strip, ahead, depth, c, add);
    case 6:
      return multiply<S, 6>(vectors, rows, strip, ahead, depth, c, add);
  }
}

}  // namespace
}  // namespace fastlstm::cpu
