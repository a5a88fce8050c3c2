// How the work of a call is divided among threads and in which order it is done; and the layout of
// the workspace.
#pragma once

#include "../lstm.h"
#include "../row_steps.h"
#include "cost.h"
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

// Calls visit(group, range) for each group's part of `items`, which are numbered through all
// groups.
template <class Visit>
FASTLSTM_INLINE void for_each_group(Range items, int64_t per_group, const Visit& visit) {
  while (items.begin < items.end) {
    const int64_t group = items.begin / per_group, base = group * per_group;
    const int64_t end = items.end < base + per_group ? items.end : base + per_group;
    visit(group, Range{items.begin - base, end - base});
    items.begin = end;
  }
}

// Calls visit(strip, rows) for what a thread packs of `strips` strips, which are `rows` deep: whole
// strips, or, if there are more threads than strips, parts of their depth, in whole runs.
template <class Visit>
FASTLSTM_INLINE void for_each_depth_part(int64_t strips, int64_t depth, int thread, int threads,
                                         const Visit& visit) {
  constexpr int64_t kLeast = 4 * kRun;
  const int64_t most = greater(depth / kLeast, 1);
  const int64_t parts = strips < threads ? lesser(ceil_div(threads, greater(strips, 1)), most) : 1;
  const Range mine = share(strips * parts, thread, threads);
  for (int64_t i = mine.begin; i < mine.end; ++i) {
    const Range runs = share(ceil_div(depth, kLeast), i % parts, parts);
    visit(i / parts, Range{runs.begin * kLeast, lesser(runs.end * kLeast, depth)});
  }
}

// One thread's part of one group: some rows of the batch and some panels of units.
struct Tile {
  int64_t group;
  Range rows, panels;
  int64_t offset;  // sum of rows times panels of this thread's earlier tiles

  int64_t num_rows() const { return rows.end - rows.begin; }
  int64_t num_panels() const { return panels.end - panels.begin; }
};

// How a call is divided among threads, in the way that cost.h expects to be fastest.
//
// Rows are independent of each other, so a thread that has its own rows runs all steps without
// waiting for other threads. But then each thread reads all of W_hh. Otherwise threads share out
// the hidden units and wait for each other every step. Many threads do both: each part of the rows
// has some threads, which share out the units and wait for each other, but not for the threads of
// other rows. Thread i has part i / panel_parts of the rows, so that threads that exchange rows are
// neighbours; the last threads have no part if it does not come out even.
struct Plan {
  int threads;
  int64_t panels;       // of a group
  bool by_rows;         // alone; rows are numbered through all groups then
  Cut cut;              // otherwise
  bool weights_fit_l2;  // a thread's part of W_hh stays in its L2 from step to step

  Plan(const LstmShape& shape, int num_threads, int64_t num_panels, int64_t weight_bytes,
       int64_t row_bytes)
      : threads(num_threads), panels(num_panels) {
    const int64_t lanes = shape.dtype == DType::float64 ? 8 : 16;
    const StepWork work = {panels, weight_bytes / greater(panels, 1), ceil_div(shape.H, lanes),
                           row_bytes};
    cut = best_cut(shape, work, threads);
    by_rows = step_by_rows(shape, work, threads) <= step_of_cut(shape, work, cut);
#if defined(FASTLSTM_FORCE_PLAN)
    if (forced_plan != ForcedPlan::none && forced_plan != ForcedPlan::all_threads) {
      by_rows = forced_plan == ForcedPlan::rows;
      set_row_parts(shape, 1);
      for (int parts = 2; forced_plan == ForcedPlan::cut && parts * parts <= threads; ++parts) {
        if (parts <= shape.B) set_row_parts(shape, parts);
      }
    }
#endif
    weights_fit_l2 = weight_bytes / (by_rows ? 1 : cut.panel_parts) <= kL2WeightBytes;
  }

  // Cuts the panels alone.
  void cut_panels(const LstmShape& shape) {
    by_rows = false;
    set_row_parts(shape, 1);
  }
  // Cuts the rows into so many parts, and the panels so that all threads have one.
  void set_row_parts(const LstmShape& shape, int row_parts) {
    const int64_t panel_parts = lesser(threads / row_parts, shape.G * panels);
    cut = {row_parts, static_cast<int>(greater(panel_parts, 1))};
  }

  // Whether no thread has all rows, the number of parts of the rows, and the rows of the largest.
  bool cuts_rows() const { return by_rows || cut.row_parts > 1; }
  int row_parts() const { return by_rows ? threads : cut.row_parts; }
  int64_t most_rows(const LstmShape& shape) const {
    return by_rows ? ceil_div(shape.G * shape.B, threads) : ceil_div(shape.B, cut.row_parts);
  }
  // Whether a thread has tiles.
  bool has_tiles(int thread) const { return by_rows || thread < cut.row_parts * cut.panel_parts; }
  // The threads that have the same rows as this one, and wait for each other at every step.
  Range neighbours(int thread) const {
    if (by_rows || !has_tiles(thread)) return {thread, thread + 1};
    const int first = thread / cut.panel_parts * cut.panel_parts;
    return {first, first + cut.panel_parts};
  }
  Team part_of(const Team& team) const {
#if defined(FASTLSTM_FORCE_PLAN)
    if (simulation.at_barrier) simulation.row_parts = row_parts();
#endif
    const Range part = neighbours(team.thread());
    return team.part(static_cast<int>(part.begin), static_cast<int>(part.end - part.begin));
  }
  // Whether the barriers between steps are barriers of all threads.
  bool is_one_part() const { return !by_rows && cut.row_parts == 1 && cut.panel_parts == threads; }

  // Calls visit(tile) for each of the thread's tiles.
  template <class Visit>
  FASTLSTM_INLINE void for_each_tile(const LstmShape& shape, int thread, const Visit& visit) const {
    if (!has_tiles(thread)) return;
    const Range rows = share(shape.B, thread / cut.panel_parts, cut.row_parts);
    int64_t offset = 0;
    for_each_group(
        by_rows ? share(shape.G * shape.B, thread, threads) : part_of_panels(shape, thread),
        by_rows ? shape.B : panels, [&](int64_t group, Range range) {
          const Tile tile =
              by_rows ? Tile{group, range, {0, panels}, offset} : Tile{group, rows, range, offset};
          visit(tile);
          offset += tile.num_rows() * tile.num_panels();
        });
  }

  // The panels, numbered through all groups, that a thread packs: those that it reads, so that they
  // are in its cache and in memory near it, shared out among the threads that read them. By rows
  // all threads read all panels.
  Range panels_to_pack(const LstmShape& shape, int thread) const {
    if (by_rows) return share(shape.G * panels, thread, threads);
    if (!has_tiles(thread)) return {0, 0};
    const Range read = part_of_panels(shape, thread);
    const Range mine = share(read.end - read.begin, thread / cut.panel_parts, cut.row_parts);
    return {read.begin + mine.begin, read.begin + mine.end};
  }

  // Calls step(tile, s) for each of the thread's tiles and each of `steps`. If the call is divided
  // by rows, a tile runs all its steps before the next tile. Else all tiles run a step, and then
  // the threads that have the same rows wait for each other.
  template <class Step>
  FASTLSTM_INLINE void for_each_step(const LstmShape& shape, Team& team, Range steps,
                                     const Step& step) const {
    if (by_rows) {
      for_each_tile(shape, team.thread(), [&](const Tile& tile) {
        for (int64_t s = steps.begin; s < steps.end; ++s) step(tile, s);
      });
    } else if (has_tiles(team.thread())) {
      Team part = part_of(team);
      for (int64_t s = steps.begin; s < steps.end; ++s) {
        for_each_tile(shape, team.thread(), [&](const Tile& tile) { step(tile, s); });
        part.barrier();
      }
    }
  }

  // The same with a second stage of every step, on the tiles of `plan`. It starts when the first
  // stage is complete.
  template <class Step, class Second>
  FASTLSTM_INLINE void for_each_step(const LstmShape& shape, Team& team, Range steps,
                                     const Step& step, const Plan& plan,
                                     const Second& second) const {
    if (by_rows) {
      for_each_tile(shape, team.thread(), [&](const Tile& tile) {
        const Tile same_rows = {tile.group, tile.rows, {0, plan.panels}, 0};
        for (int64_t s = steps.begin; s < steps.end; ++s) {
          step(tile, s);
          second(same_rows, s);
        }
      });
    } else if (has_tiles(team.thread())) {
      Team part = part_of(team);
      for (int64_t s = steps.begin; s < steps.end; ++s) {
        for_each_tile(shape, team.thread(), [&](const Tile& tile) { step(tile, s); });
        part.barrier();
        plan.for_each_tile(shape, team.thread(), [&](const Tile& tile) { second(tile, s); });
        part.barrier();
      }
    }
  }

  // The most pairs of a row and a panel that one thread has at a step.
  int64_t pairs(const LstmShape& shape) const {
    return most_rows(shape) * (by_rows ? panels : ceil_div(shape.G * panels, cut.panel_parts));
  }
  // The pairs of the threads before this one.
  int64_t pairs_before(const LstmShape& shape, int thread) const {
    if (by_rows) return share(shape.G * shape.B, thread, threads).begin * panels;
    if (!has_tiles(thread)) return 0;
    const Range rows = share(shape.B, thread / cut.panel_parts, cut.row_parts);
    return rows.begin * shape.G * panels +
           (rows.end - rows.begin) * part_of_panels(shape, thread).begin;
  }

 private:
  // Numbered through all groups.
  Range part_of_panels(const LstmShape& shape, int thread) const {
    return share(shape.G * panels, thread % cut.panel_parts, cut.panel_parts);
  }
};

// Divides the rows among `parts` threads, so that at every step all threads have about the same
// number of rows that have not ended: order[i] is the row at place i of the threads' shares.
inline void balance_rows(const int64_t* by_length, int64_t rows, int64_t parts, int64_t* order) {
  const int64_t rounds = ceil_div(rows, parts);
  for (int64_t round = 0; round < rounds; ++round) {
    for (int64_t i = 0; i < parts; ++i) {
      const int64_t part =
          round % 2 ? parts - 1 - i : i;  // the last thread of a round is first in the next one
      const Range places = share(rows, part, parts);
      if (places.begin + round < places.end) order[places.begin + round] = *by_length++;
    }
  }
}

// Divides the workspace into arrays. With a null base it only counts their bytes.
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

// Whether float32 is split into pieces of bfloat16 and multiplied on tiles. Splitting takes time, a
// weight takes 6 bytes instead of 4, and tiles round rows up to 16 and the depth up to 32. Speed
// with tiles over speed without, for forward / forward and backward at T,B,H: 100,8,128 0.75 /
// 0.72; 100,16,128 0.98 / 0.85; 50,64,128 1.14 / 1.00; 100,16,256 1.22 / 1.09; 10,128,512 1.40 /
// 1.19; but 2,67,1142 0.93 / 0.73 and 13,89,133 0.72 / 0.79.
constexpr bool splits(const LstmShape& shape) {
  const bool fills_tiles = 8 * ceil_div(shape.H, 32) * 32 <= 9 * shape.H;
  return shape.B >= 16 && shape.H >= 128 && shape.B * shape.H >= 4096 && fills_tiles &&
         shape.T * shape.B >= 256;
}

// Calls visit(Stored{}) with the type of the call's numbers.
template <class Visit>
auto with_stored(const LstmShape& shape, const Visit& visit) {
  if (shape.dtype == DType::float64) return visit(double{});
  if (shape.dtype == DType::bfloat16) return visit(BFloat16{});
  if constexpr (kOnTiles<SplitFloat>) {
    if (splits(shape)) return visit(SplitFloat{});
  }
  return visit(float{});
}

// Bytes of workspace that a call of Pass, Forward or Backward, needs.
template <template <class> class Pass, class Call>
size_t workspace_for(const LstmShape& shape, int num_threads) {
  Call call{};
  call.shape = shape;
  return with_stored(shape, [&](auto stored) {
    return Pass<decltype(stored)>(call, num_threads).workspace_bytes();
  });
}

// Calls visit(lanes) with the lanes of the vector at `unit` that lie below H: all, or the first
// few.
template <int kLanes, class Visit>
FASTLSTM_INLINE void with_lanes(int64_t unit, int64_t H, const Visit& visit) {
  if (unit + kLanes <= H) {
    visit(AllLanes{});
  } else if (unit < H) {
    visit(SomeLanes{static_cast<int32_t>(H - unit)});
  }
}

// Calls visit(std::integral_constant<int, count>{}), for a count from 1 to kMost.
template <int kMost, class Visit>
FASTLSTM_INLINE void with_count(int count, const Visit& visit) {
  if (count == kMost) return visit(std::integral_constant<int, kMost>{});
  if constexpr (kMost > 1) with_count<kMost - 1>(count, visit);
}

}  // namespace
}  // namespace fastlstm::cpu
