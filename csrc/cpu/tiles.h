// Products on AMX tiles: up to 32 rows times one packed strip.
//
// A tile has 16 rows of 64 bytes. kRun words along the depth of one vector of a strip fill a tile,
// and so do kRun words of 16 rows. One instruction multiplies two tiles and adds to a third: 8,192
// multiply-adds in 16 cycles, where the vector instruction does 32 in one cycle.
// Four of the eight tiles are sums: 2 x 2 tiles of 16 rows and one vector each, which takes 4 loads
// for 4 multiplications; or 1 x 4 tiles for 16 rows or fewer, which takes 6 loads for 4. The pieces
// of split floats are multiplied into the same sums, with 3 loads for 4 multiplications.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#include "formats.h"

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

// The number of rows that this thread's tiles are configured for, or 0 if they are not configured.
// Configuring takes 50 ns, a tenth of a product of 32 rows, so it is done only on a change.
thread_local int tile_rows = 0;

// Configures the tiles: 0 to 3 are sums, 4 and 5 hold rows, 6 and 7 hold the strip.
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

// Releases this thread's tiles at the end of the scope, so that other libraries find them unused.
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

// Memory that tiles are loaded from or stored to. Rows lie `stride` bytes apart; in an operand the
// next kRun words of depth lie `run` bytes on, and the next piece of the same words `piece` bytes
// on.
struct Matrix {
  char* data;
  int64_t stride, run, piece;
};
// The matrix of `count` rows in a block or a sliver; and of a strip of `vectors` vectors.
template <class S>
FASTLSTM_INLINE Matrix rows_matrix(const Word<S>* rows, int64_t count) {
  const int64_t piece = count * kTileRowBytes;
  char* data = const_cast<char*>(reinterpret_cast<const char*>(rows));
  return {data, kTileRowBytes, kPieces<S> * piece, piece};
}
template <class S>
FASTLSTM_INLINE Matrix strip_matrix(const Word<S>* strip, int vectors) {
  const int64_t stride = vectors * kTileRowBytes, piece = kRun * stride;
  char* data = const_cast<char*>(reinterpret_cast<const char*>(strip));
  return {data, stride, kPieces<S> * piece, piece};
}

// c (kRowTiles tiles high, kVectors tiles wide) = or += rows x kVectors vectors of a strip, `runs`
// runs deep. Products of pieces that lie below the last bit of float32 are left out: piece i of the
// strip is multiplied with the first kPieces - i pieces of the rows. Prefetches the same vectors of
// the strip `ahead` (null: none). For split floats it also prefetches this strip's next words:
// training at T,B,I,H = 100,32,256,256 takes 33.4 ms with it, 35.4 without. For bfloat16 that costs
// more than it saves: a forward pass takes 3.5 ms instead of 2.9.
template <int kRowTiles, int kVectors, int kPieces>
__attribute__((noinline)) void multiply_tiles(Matrix rows, Matrix strip, Matrix c, int64_t runs,
                                              const char* ahead, bool add) {
  constexpr int kAtOnce = kVectors < 2 ? 1 : 2;
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
    unrolled<kPieces>([&](auto of_strip) {
      unrolled<kVectors / kAtOnce>([&](auto pair) {
        unrolled<kAtOnce>([&](auto v) {
          const int64_t vector = pair * kAtOnce + v;
          tile_load<6 + v>(b + of_strip * strip.piece + vector * kTileRowBytes, strip.stride);
          const char* soon = b + strip.run + of_strip * strip.piece + vector * kTileRowBytes;
          for (int word = 0; kPieces > 1 && word < kRun; ++word) {
            __builtin_prefetch(soon + word * strip.stride);
          }
          for (int word = 0; ahead && word < kRun; ++word) {
            __builtin_prefetch(ahead + vector * kTileRowBytes + word * strip.stride, 0, 2);
          }
        });
        if (ahead && pair + 1 == kVectors / kAtOnce) ahead += strip.piece;
        unrolled<kPieces - of_strip>([&](auto of_rows) {
          unrolled<kRowTiles>([&](auto r) {
            tile_load<4 + r>(a + of_rows * rows.piece + r * kTileRows * rows.stride, rows.stride);
            unrolled<kAtOnce>(
                [&](auto v) { tile_multiply<2 * r + pair * kAtOnce + v, 4 + r, 6 + v>(); });
          });
        });
      });
    });
  }
  for_each_sum([&](auto sum, char* at) { tile_store<sum>(at, c.stride); });
}

// Whether the rows are evenly spaced in memory.
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

// c[r] (`vectors` vectors, anywhere in memory) = or += row r x strip, for up to kMaxRows rows.
template <class S>
FASTLSTM_INLINE void multiply_on_tiles(int count, int vectors, const Matrix& rows,
                                       const Word<S>* strip, const Word<S>* ahead, int64_t depth,
                                       float* const* c, bool add) {
  constexpr int P = kPieces<S>;
  const int64_t runs = words_of<S>(depth) / kRun, width = vectors * kTileRowBytes;
  set_tiles(count);
  alignas(64) char sums[kMaxRows<S> * kColumns * kTileRowBytes];
  const bool direct = are_even(c, count);
  Matrix to = {reinterpret_cast<char*>(c[0]), stride_of(c, count), 0, 0};
  if (!direct) to = {sums, width, 0, 0};
  for (int r = 0; add && !direct && r < count; ++r) std::memcpy(sums + r * width, c[r], width);

  Matrix part = strip_matrix<S>(strip, vectors);
  const char* next = reinterpret_cast<const char*>(ahead);
  if (count <= kTileRows) {
    if (vectors == 4) multiply_tiles<1, 4, P>(rows, part, to, runs, next, add);
    if (vectors == 2) multiply_tiles<1, 2, P>(rows, part, to, runs, next, add);
    if (vectors == 1) multiply_tiles<1, 1, P>(rows, part, to, runs, next, add);
  } else if (vectors == 1) {
    multiply_tiles<2, 1, P>(rows, part, to, runs, next, add);
  } else {
    for (int v = 0; v < vectors; v += 2) {
      multiply_tiles<2, 2, P>(rows, part, to, runs, next, add);
      if (next) next += 2 * kTileRowBytes;
      part.data += 2 * kTileRowBytes;
      to.data += 2 * kTileRowBytes;
    }
  }
  for (int r = 0; !direct && r < count; ++r) std::memcpy(c[r], sums + r * width, width);
}

#else

// Declarations for machines without tiles: the code that names them is never instantiated.
struct TileScope {
  TileScope() {}  // not trivial: the compiler would warn of an unused variable
};
struct Matrix {};
template <class S>
Matrix rows_matrix(const Word<S>* rows, int64_t count);
template <class S>
void multiply_on_tiles(int count, int vectors, const Matrix& rows, const Word<S>* strip,
                       const Word<S>* ahead, int64_t depth, Sum<S>* const* c, bool add);

#endif

}  // namespace
}  // namespace fastlstm::cpu
