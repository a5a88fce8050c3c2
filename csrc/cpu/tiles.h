// Products of bfloat16 on AMX tiles: up to 32 rows times one packed strip.
//
// A tile is 16 rows of 64 bytes. So are kRun words along the depth of a strip's vector, and kRun
// words of 16 rows of a block, as they lie. One instruction multiplies two of them and adds to a
// third: 8,192 multiply-adds in 16 cycles, where the vector instruction does 32 in one.
// Of the eight tiles four are sums: 2 x 2 of 16 rows and one vector each, which needs as many loads
// as multiplications; or 1 x 4 of 16 rows or fewer, with 5 loads for 4.
#pragma once

#include <cstdlib>
#include <cstring>
#include <utility>

#include "microkernel.h"

namespace fastlstm::cpu {
namespace {

#if defined(FASTLSTM_TILES)

constexpr int kTileRows = 16;
constexpr int64_t kTileRowBytes = 64;

template <int kTo>
FASTLSTM_INLINE void tile_zero() {
  asm volatile("tilezero %%tmm%c0" : : "i"(kTo));
}
template <int kTo>
FASTLSTM_INLINE void tile_load(const char* from, int64_t stride) {
  asm volatile("tileloadd (%1,%2,1), %%tmm%c0" : : "i"(kTo), "r"(from), "r"(stride) : "memory");
}
template <int kFrom>
FASTLSTM_INLINE void tile_store(char* to, int64_t stride) {
  asm volatile("tilestored %%tmm%c0, (%1,%2,1)" : : "i"(kFrom), "r"(to), "r"(stride) : "memory");
}
template <int kSum, int kRows, int kStrip>
FASTLSTM_INLINE void tile_multiply() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSum), "i"(kRows), "i"(kStrip));
}

// The rows that this thread's tiles are set for: setting them costs 50 ns, a tenth of a product of
// 32 rows. 0 is not at all.
thread_local int tile_rows = 0;

// Tiles 0 to 3 are sums, 4 and 5 rows, and 6 and 7, or with one tile of rows 5 too, of the strip.
inline void set_tiles(int rows) {
  if (rows == tile_rows) return;
  struct alignas(64) {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
  } config;
  for (int tile = 0; tile < 8; ++tile) {
    const bool first = rows <= kTileRows && tile <= 4;
    const bool second = rows > kTileRows && (tile == 2 || tile == 3 || tile == 5);
    config.row_bytes[tile] = kTileRowBytes;
    config.rows[tile] = static_cast<uint8_t>(first ? rows : second ? rows - kTileRows : kTileRows);
  }
  asm volatile("ldtilecfg %0" : : "m"(config));
  tile_rows = rows;
}

// While it lives, its thread may use tiles; afterwards they are as they were for other libraries.
struct TileScope {
  TileScope() = default;
  TileScope(const TileScope&) = delete;
  TileScope& operator=(const TileScope&) = delete;
  ~TileScope() {
    if (tile_rows) asm volatile("tilerelease");
    tile_rows = 0;
  }
};

// Calls visit with the integral constants 0 to kCount - 1.
template <class Visit, int... kIndex>
FASTLSTM_INLINE void unrolled(std::integer_sequence<int, kIndex...>, const Visit& visit) {
  (visit(std::integral_constant<int, kIndex>{}), ...);
}
template <int kCount, class Visit>
FASTLSTM_INLINE void unrolled(const Visit& visit) {
  unrolled(std::make_integer_sequence<int, kCount>{}, visit);
}

// Rows `stride` bytes apart, or for `run`: how far a run of kRun words is from the one before.
struct Matrix {
  char* data;
  int64_t stride, run;
};

// c (kRowTiles tiles, kVectors tiles wide) = or += rows x as many vectors of a strip, `runs` deep.
// Meanwhile `ahead` comes closer, as many bytes as the whole strip has; null if nothing is to.
template <int kRowTiles, int kVectors>
__attribute__((noinline)) void multiply_tiles(const Matrix& rows, const Matrix& strip,
                                              const Matrix& c, int64_t runs, const char* ahead,
                                              bool add) {
  const auto for_each_sum = [&](const auto& visit) {
    unrolled<kRowTiles>([&](auto r) {
      unrolled<kVectors>([&](auto v) {
        visit(std::integral_constant<int, 2 * r + v>{},
              c.data + r * kTileRows * c.stride + v * kTileRowBytes);
      });
    });
  };
  if (add) {
    for_each_sum([&](auto sum, char* at) { tile_load<sum>(at, c.stride); });
  } else {
    for_each_sum([&](auto sum, char*) { tile_zero<sum>(); });
  }
  const char *a = rows.data, *b = strip.data;
  for (int64_t run = 0; run < runs; ++run, a += rows.run, b += strip.run) {
    for (int64_t line = 0; ahead && line < strip.run; line += 64) {
      __builtin_prefetch(ahead + line, 0, 2);
    }
    if (ahead) ahead += strip.run;
    unrolled<kRowTiles>(
        [&](auto r) { tile_load<4 + r>(a + r * kTileRows * rows.stride, rows.stride); });
    unrolled<kVectors>([&](auto v) {
      constexpr int kStrip = kRowTiles == 2 ? 6 + v : 5 + v % 3;
      tile_load<kStrip>(b + v * kTileRowBytes, strip.stride);
      unrolled<kRowTiles>([&](auto r) { tile_multiply<2 * r + v, 4 + r, kStrip>(); });
    });
  }
  for_each_sum([&](auto sum, char* at) { tile_store<sum>(at, c.stride); });
}

// Whether each row is as far from the one before as the second is from the first.
template <class Pointer>
FASTLSTM_INLINE bool are_even(const Pointer* rows, int count) {
  const auto address = [&](int r) { return reinterpret_cast<intptr_t>(rows[r]); };
  intptr_t uneven = 0;
  for (int r = 2; r < count; ++r) {
    uneven |= (address(r) - address(r - 1)) ^ (address(1) - address(0));
  }
  return uneven == 0;
}
template <class Pointer>
FASTLSTM_INLINE int64_t stride_of(const Pointer* rows, int count) {
  return count > 1 ? reinterpret_cast<intptr_t>(rows[1]) - reinterpret_cast<intptr_t>(rows[0])
                   : kTileRowBytes;
}

// The same for `count` rows up to kMaxRows, and sums anywhere in memory; as multiply_rows.
FASTLSTM_INLINE void multiply_on_tiles(int count, int vectors, const BFloat16* const* rows,
                                       Spacing spacing, const uint32_t* strip,
                                       const uint32_t* ahead, int64_t depth, float* const* c,
                                       bool add) {
  constexpr int64_t kWordBytes = sizeof(uint32_t), kRunNumbers = kTileRowBytes / sizeof(BFloat16);
  constexpr int64_t kMostRuns = kDepth / kRun;
  const int64_t runs = (depth + kRunNumbers - 1) / kRunNumbers;
  const int64_t width = vectors * kTileRowBytes;
  set_tiles(count);

  alignas(64) char gathered[kMostRuns * kMaxRows<BFloat16> * kTileRowBytes];
  Matrix from = {const_cast<char*>(reinterpret_cast<const char*>(rows[0])), stride_of(rows, count),
                 (kRun * spacing.step + spacing.gap) * kWordBytes};
  if (depth % kRunNumbers || !are_even(rows, count)) {
    from.data = gathered;
    from.stride = kTileRowBytes;
    const int64_t run_bytes = count * kTileRowBytes;
    for (int64_t run = 0; run < runs; ++run) {
      const int64_t bytes = (depth - run * kRunNumbers) * int64_t{sizeof(BFloat16)};
      for (int r = 0; r < count; ++r) {
        char* to = gathered + run * run_bytes + r * kTileRowBytes;
        const char* row = reinterpret_cast<const char*>(rows[r]) + run * from.run;
        if (bytes < kTileRowBytes) std::memset(to, 0, kTileRowBytes);
        std::memcpy(to, row, bytes < kTileRowBytes ? bytes : kTileRowBytes);
      }
    }
    from.run = run_bytes;
  }

  alignas(64) char sums[kMaxRows<BFloat16> * kColumns * kTileRowBytes];
  const bool direct = are_even(c, count);
  Matrix to = {reinterpret_cast<char*>(c[0]), stride_of(c, count), 0};
  if (!direct) to = {sums, width, 0};
  for (int r = 0; add && !direct && r < count; ++r) std::memcpy(sums + r * width, c[r], width);

  Matrix part = {const_cast<char*>(reinterpret_cast<const char*>(strip)), width, kRun * width};
  const char* next = reinterpret_cast<const char*>(ahead);
  if (count <= kTileRows) {
    if (vectors == 4) multiply_tiles<1, 4>(from, part, to, runs, next, add);
    if (vectors == 2) multiply_tiles<1, 2>(from, part, to, runs, next, add);
    if (vectors == 1) multiply_tiles<1, 1>(from, part, to, runs, next, add);
  } else if (vectors == 1) {
    multiply_tiles<2, 1>(from, part, to, runs, next, add);
  } else {
    for (int v = 0; v < vectors; v += 2, next = nullptr) {
      multiply_tiles<2, 2>(from, part, to, runs, next, add);
      part.data += 2 * kTileRowBytes;
      to.data += 2 * kTileRowBytes;
    }
  }
  for (int r = 0; !direct && r < count; ++r) std::memcpy(c[r], sums + r * width, width);
}

#else

struct TileScope {
  TileScope() {}  // so that it does not seem unused
};

#endif

}  // namespace
}  // namespace fastlstm::cpu
