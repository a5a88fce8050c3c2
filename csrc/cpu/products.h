// Products of any number of rows with packed strips.
#pragma once

#include "packing.h"

namespace fastlstm::cpu {
namespace {

// Up to this many bytes, rows of h' are read as they lie: half of a usual L1.
constexpr int64_t kRowBytes = 16 * 1024;
// Up to this many rows, L3 limits the speed and prefetches slow it down: 1000 steps of two layers
// with H = 512 take 72 ms without them, 84 with them.
constexpr int64_t kFewToPrefetch = 2;

// One row of a product: the row that is multiplied, and the memory of its sums.
template <class S>
struct Operand {
  const S* row;
  Sum<S>* c;
};

// Strips that lie `stride` words apart; `next` will be read after them, and is prefetched unless
// null.
template <class S>
struct Strips {
  const Word<S>* data;
  int64_t stride;
  const Word<S>* next;
  int64_t columns;    // of all strips together: the last may be narrow
  int64_t first = 0;  // word of their depth
};

// Calls visit(first, count) for blocks of at most kMaxRows rows, of about equal size. On tiles,
// where 9 rows take as long as 16, all blocks but the last have kMaxRows rows.
template <class S, class Visit>
FASTLSTM_INLINE void for_each_block(int64_t rows, const Visit& visit) {
  const int64_t blocks = ceil_div(rows, kMaxRows<S>);
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t first = kOnTiles<S> ? block * kMaxRows<S> : rows * block / blocks;
    const int64_t end =
        kOnTiles<S> ? lesser(first + kMaxRows<S>, rows) : rows * (block + 1) / blocks;
    visit(first, static_cast<int>(end - first));
  }
}

// Packs rows (depth) into blocks of [run of kRun words][rows of the block], those of
// for_each_block. Rows that are far apart are separate streams for the prefetcher and often fall
// into the same sets of L1: reading them as they lie takes 10% longer.
template <class S, class RowAt>
FASTLSTM_INLINE void pack_row_blocks(int64_t count, int64_t depth, const RowAt& row,
                                     Word<S>* blocks) {
  if constexpr (kOnTiles<S>) {
    for_each_block<S>(count, [&](int64_t first, int size) {
      const Matrix block = rows_matrix<S>(blocks + first * block_words<S>(depth), size);
      for (int r = 0; r < size; ++r) pack_tile_row(row(first + r), depth, block, r);
    });
  } else {
    constexpr int64_t kRunNumbers = kRun * Format<S>::kPerWord;
    const int64_t whole = depth / kRunNumbers;
    for_each_block<S>(count, [&](int64_t first, int size) {
      for (int r = 0; r < size; ++r) {
        const S* from = row(first + r);
        Word<S>* to = blocks + first * block_words<S>(depth) + r * kRun;
        for (int64_t run = 0; run < whole; ++run, from += kRunNumbers, to += size * kRun) {
          std::memcpy(to, from, kRun * sizeof(*to));
        }
        const int64_t left = depth - whole * kRunNumbers;
        if (left) {
          std::memset(to, 0, kRun * sizeof(*to));
          std::memcpy(to, from, left * sizeof(*from));
        }
      }
    });
  }
}

// For each of `count` rows, c (`num_strips` strips wide) = or += row (depth) x strips. A strip
// stays in L1 or L2 while all rows are multiplied with it. The rows are read from `blocks`, which
// pack_row_blocks filled, or, if it is null, as they lie.
template <class S, class OperandAt>
FASTLSTM_INLINE void multiply_strips(const Strips<S>& strips, int num_strips, int64_t count,
                                     int64_t depth, bool add, const Word<S>* blocks,
                                     const OperandAt& operand) {
  for (int strip = 0; strip < num_strips; ++strip) {
    const int64_t columns = strips.columns - strip * kStripWidth<S>;
    const int vectors = vectors_of<S>(columns);
    const Word<S>* begin = strips.data + strip * strips.stride;
    const Word<S>* data = begin + strips.first * vectors * kLanes<S>;
    const bool last = strip + 1 == num_strips;
    const Word<S>* next = last ? strips.next : begin + strips.stride;
    for_each_block<S>(count, [&](int64_t first, int size) {
      const Word<S>* block = blocks + first * block_words<S>(depth);
      const S* rows[kMaxRows<S>];
      Sum<S>* c[kMaxRows<S>];
      for (int r = 0; r < size; ++r) {
        const Operand<S> at = operand(first + r);
        rows[r] = at.row;
        c[r] = at.c + strip * kStripWidth<S>;
      }
      if constexpr (kOnTiles<S>) {
        alignas(64) char room[kRowsRoom<S>];
        const Matrix from =
            blocks ? rows_matrix<S>(block, size) : unpacked_rows(rows, size, depth, room);
        const Word<S>* ahead = first == 0 ? next : nullptr;
        multiply_on_tiles<S>(size, vectors, from, data, ahead, depth, c, add);
      } else {
        // Each block prefetches its share of the next strip. If the first one prefetched all of it,
        // memory could not keep up: 25 MB of weights took 3 to 4% longer on Zen 1.
        const int64_t runs = words_of<S>(depth) / kRun;
        const int64_t fetched = runs * first / count, end = runs * (first + size) / count;
        Ahead<S> ahead;
        if (next) ahead = {next + fetched * kRun * vectors * kLanes<S>, end - fetched};
        if (blocks) {
          const int64_t even = words_of<S>(depth) * Format<S>::kPerWord;  // padded with a zero
          multiply<S>(size, vectors, RowBlock<S>{block}, data, ahead, even, c, add);
        } else {
          multiply<S>(size, vectors, FarRows<S>{rows}, data, ahead, depth, c, add);
        }
      }
    });
  }
}

}  // namespace
}  // namespace fastlstm::cpu
