// Who computes what, and in which order: the cut of a call into tiles, a row's way through time,
// and the layout of the workspace.
#pragma once

#include "../lstm.h"
#include "packing.h"
#include "team.h"

namespace fastlstm::cpu {
namespace {

struct Range {
  int64_t begin, end;
};

// The `part`-th of `parts` shares of 0..count, as even as integers allow.
constexpr Range share(int64_t count, int64_t part, int64_t parts) {
  return {count * part / parts, count * (part + 1) / parts};
}

// What one thread computes of one group at a step: some rows of the batch, some panels of units.
struct Tile {
  int64_t group;
  Range rows, panels;
};

// Calls visit(group, range) for each group's part of `items`, which counts through all groups.
template <class Visit>
FASTLSTM_INLINE void for_each_group(Range items, int64_t per_group, const Visit& visit) {
  while (items.begin < items.end) {
    const int64_t group = items.begin / per_group, base = group * per_group;
    const int64_t end = items.end < base + per_group ? items.end : base + per_group;
    visit(group, Range{items.begin - base, end - base});
    items.begin = end;
  }
}

// Rows never need each other, so a thread with rows of its own runs all T steps without waiting.
// But each then reads all of W_hh: that pays while W_hh fits into the thread's L2 and there are
// rows enough to reuse it. Otherwise threads share out the hidden units, and wait at every step.
bool split_by_rows(const LstmShape& shape, int threads, int64_t panels, int64_t weight_bytes) {
  if (shape.G % threads == 0 || shape.G * panels < threads) return true;
  return weight_bytes <= 512 * 1024 && shape.G * shape.B >= 2 * threads;
}

// Runs step(tile, s) for s = 0..T-1 over this thread's tiles, after start(tile), before end(tile).
template <class Start, class Step, class End>
FASTLSTM_INLINE void run_tiles(Team& team, const LstmShape& shape, int64_t panels, bool by_rows,
                               const Start& start, const Step& step, const End& end) {
  const int64_t per_group = by_rows ? shape.B : panels;
  const Range mine = share(shape.G * per_group, team.thread(), team.size());
  const auto for_each_tile = [&](const auto& visit) {
    for_each_group(mine, per_group, [&](int64_t group, Range range) {
      visit(by_rows ? Tile{group, range, {0, panels}} : Tile{group, {0, shape.B}, range});
    });
  };
  if (by_rows) {
    for_each_tile([&](const Tile& tile) {
      start(tile);
      for (int64_t s = 0; s < shape.T; ++s) step(tile, s);
      end(tile);
    });
  } else {
    for_each_tile(start);
    for (int64_t s = 0; s < shape.T; ++s) {
      for_each_tile([&](const Tile& tile) { step(tile, s); });
      team.barrier();
    }
    for_each_tile(end);
  }
}

// A row's way through time, in the order of the forward pass.
struct Course {
  int64_t length;
  bool reverse;

  Course(const LstmShape& shape, int64_t group, int64_t row)
      : length(shape.lengths ? shape.lengths[row] : shape.T), reverse(shape.reverse[group]) {}

  bool visits(int64_t t) const { return t < length; }
  int64_t first() const { return reverse ? length - 1 : 0; }
  int64_t last() const { return reverse ? 0 : length - 1; }
  int64_t before(int64_t t) const { return reverse ? t + 1 : t - 1; }
  int64_t after(int64_t t) const { return reverse ? t - 1 : t + 1; }
};

// Hands out the workspace piece by piece; with a null base it only counts.
class Workspace {
 public:
  explicit Workspace(void* base) : base_(static_cast<char*>(base)) {}

  template <class Item>
  Item* take(int64_t count) {
    Item* piece = reinterpret_cast<Item*>(base_ + bytes_);
    bytes_ += ceil_div(count * sizeof(Item), 64) * 64;
    return piece;
  }
  size_t bytes() const { return bytes_; }

 private:
  char* base_;
  size_t bytes_ = 0;
};

// Calls visit(first, count) for blocks of at most kMaxRows rows, as even as integers allow.
template <class Visit>
FASTLSTM_INLINE void for_each_block(int64_t rows, const Visit& visit) {
  const int64_t blocks = ceil_div(rows, kMaxRows);
  for (int64_t block = 0; block < blocks; ++block) {
    const Range range = share(rows, block, blocks);
    visit(range.begin, static_cast<int>(range.end - range.begin));
  }
}

// Calls visit(lanes) with the type that says whether all lanes of the vector at `unit` lie below H.
template <int kLanes, class Visit>
FASTLSTM_INLINE void with_lanes(int64_t unit, int64_t H, const Visit& visit) {
  if (unit + kLanes <= H) {
    visit(AllLanes{});
  } else if (unit < H) {
    visit(SomeLanes{static_cast<int32_t>(H - unit)});
  }
}

}  // namespace
}  // namespace fastlstm::cpu
