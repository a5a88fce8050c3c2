// Sums over the units of each row, as a layer norm needs them, where threads may share out the
// units; and the order of a step's phases.
#pragma once

#include "arrays.h"

namespace fastlstm::cpu {
namespace {

// What a layer norm adds to the variance.
constexpr double kEpsilon = 1e-5;

FASTLSTM_INLINE float square_root(float x) { return __builtin_sqrtf(x); }
FASTLSTM_INLINE double square_root(double x) { return __builtin_sqrt(x); }

// The sum of a vector's lanes.
template <class S, class Value>
FASTLSTM_INLINE Sum<S> sum_of_lanes(Value value) {
  alignas(kVectorBytes) Sum<S> lane[kLanes<S>];
  Simd<Sum<S>>::store(lane, value, AllLanes{});
#pragma GCC unroll 4
  for (int half = kLanes<S> / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
  }
  return lane[0];
}

// The number in all lanes, or in those that are loaded and zero in the others.
template <class S>
FASTLSTM_INLINE typename Simd<Sum<S>>::Value spread_over(Sum<S> number, AllLanes) {
  return number - typename Simd<Sum<S>>::Value{};
}
template <class S>
FASTLSTM_INLINE typename Simd<Sum<S>>::Value spread_over(Sum<S> number, SomeLanes lanes) {
  alignas(kVectorBytes) Sum<S> all[kLanes<S>];
  Simd<Sum<S>>::store(all, spread_over<S>(number, AllLanes{}), AllLanes{});
  return Simd<Sum<S>>::load(all, lanes);
}

// A vector, or one of each gate, as a layer norm takes them.
template <class Value>
FASTLSTM_INLINE Value sum_of(Value x) {
  return x;
}
template <class Value>
FASTLSTM_INLINE Value sum_of(const Gates<Value>& x) {
  return (x.i + x.f) + (x.g + x.o);
}
template <class Value>
FASTLSTM_INLINE Value square(Value x, Value mean) {
  return (x - mean) * (x - mean);
}
template <class Value>
FASTLSTM_INLINE Value square(const Gates<Value>& x, Value mean) {
  return (square(x.i, mean) + square(x.f, mean)) + (square(x.g, mean) + square(x.o, mean));
}

// Mean and 1 / sqrt(variance + epsilon) of a row.
template <class Item>
struct Moments {
  Item mean, scale;

  template <class Value>
  FASTLSTM_INLINE Value normalise(Value x) const {
    return (x - mean) * scale;
  }
  template <class Value>
  FASTLSTM_INLINE Gates<Value> normalise(const Gates<Value>& x) const {
    return {normalise(x.i), normalise(x.f), normalise(x.g), normalise(x.o)};
  }
};

// One thread's part of the sums of a row: of how many numbers, and two sums of them.
template <class Item>
struct RowPart {
  Item count, first, second;
};

// Some sums of the rows of every group. A thread writes its parts, and after a barrier it reads
// those of all threads.
template <class S>
class RowSums {
  using Item = Sum<S>;

 public:
  RowSums(const LstmShape& shape, int threads, Workspace& workspace)
      : B_(shape.B),
        rows_(ceil_div(shape.G * shape.B, 16) * 16),  // whole cache lines
        parts_(workspace.take<RowPart<Item>>(threads * rows_)) {}

  // Where a thread has no units, it has parts of no numbers.
  void clear(int thread) const {
    for (int64_t i = 0; i < rows_; ++i) parts_[thread * rows_ + i] = {};
  }
  // The i-th row of a group's step.
  RowPart<Item>& part(int thread, int64_t group, int64_t i) const {
    return parts_[thread * rows_ + group * B_ + i];
  }

  // From the parts that `measure` of NormalizedArrays returned.
  Moments<Item> moments(Range threads, int64_t group, int64_t i) const {
    Item count = 0, sum = 0, squares = 0;
    for (int64_t thread = threads.begin; thread < threads.end; ++thread) {
      const RowPart<Item>& mine = part(static_cast<int>(thread), group, i);
      count += mine.count;
      sum += mine.count * mine.first;
    }
    const Item mean = sum / count;
    for (int64_t thread = threads.begin; thread < threads.end; ++thread) {
      const RowPart<Item>& mine = part(static_cast<int>(thread), group, i);
      if (mine.count > 0) {
        squares += mine.second + mine.count * (mine.first - mean) * (mine.first - mean);
      }
    }
    return {mean, 1 / square_root(squares / count + static_cast<Item>(kEpsilon))};
  }
  // Both sums divided by the count.
  RowPart<Item> means(Range threads, int64_t group, int64_t i) const {
    RowPart<Item> sum = {};
    for (int64_t thread = threads.begin; thread < threads.end; ++thread) {
      const RowPart<Item>& mine = part(static_cast<int>(thread), group, i);
      sum.count += mine.count;
      sum.first += mine.first;
      sum.second += mine.second;
    }
    return {sum.count, sum.first / sum.count, sum.second / sum.count};
  }

 private:
  const int64_t B_, rows_;
  RowPart<Item>* const parts_;
};

// The rows that have a step, or a part of them. Each thread writes its own cache lines: with the
// lists of two threads in one line, a backward step of one row with H = 256 took 1 us longer.
template <class Row>
struct alignas(64) RowList {
  Row* data;
  int64_t count;
};

// The lists of each thread and group, which a step's phases hand on.
template <class Row>
class RowLists {
 public:
  RowLists(const LstmShape& shape, int threads, Workspace& workspace)
      : shape_(shape),
        rows_(workspace.take<Row>(threads * shape.G * shape.B)),
        lists_(workspace.take<RowList<Row>>(threads * shape.G)) {}

  const RowList<Row>& of(const Tile& tile, int thread) const {
    return lists_[thread * shape_.G + tile.group];
  }
  // The list with no row in it.
  RowList<Row>& start(const Tile& tile, int thread) const {
    const int64_t list = thread * shape_.G + tile.group;
    lists_[list] = {rows_ + list * shape_.B, 0};
    return lists_[list];
  }

 private:
  const LstmShape& shape_;
  Row* const rows_;
  RowList<Row>* const lists_;
};

// Who runs a phase of a step.
struct Phase {
  int thread;
  const Plan& plan;
  Range parts;           // the threads that have parts of a row's sums
  int64_t pairs_before;  // of a row and a panel, of the threads before this one

  Phase(const LstmShape& shape, const Team& team, const Plan& plan)
      : thread(team.thread()),
        plan(plan),
        parts(plan.neighbours(thread)),
        pairs_before(plan.pairs_before(shape, thread)) {}
};

// What both passes need of the arrays of a call.
template <class S>
class NormalizedArrays : protected Arrays<S> {
 protected:
  using Arrays<S>::Arrays;
  using Arrays<S>::shape_;

  int64_t states() const { return shape_.G * shape_.B; }
  // The hidden units of a tile.
  int64_t units(const Tile& tile) const {
    return lesser(tile.panels.end * kLanes<S>, shape_.H) - tile.panels.begin * kLanes<S>;
  }
  // Mean, and sum of squared differences from it, of a row's numbers in a tile: at(panel, unit,
  // lanes) is a vector, or one of each of 4 `gates`. It takes two passes: a single one, with the
  // sum of squares, cancels where the mean is large.
  template <class At>
  FASTLSTM_INLINE RowPart<Sum<S>> measure(const Tile& tile, int gates, const At& at) const {
    const auto count = static_cast<Sum<S>>(gates * units(tile));
    typename Simd<Sum<S>>::Value sum = {}, squares = {};
    for_each_panel(tile, [&](int64_t panel, int64_t unit, auto lanes) {
      sum += sum_of(at(panel, unit, lanes));
    });
    const Sum<S> mean = sum_of_lanes<S>(sum) / count;
    for_each_panel(tile, [&](int64_t panel, int64_t unit, auto lanes) {
      squares += square(at(panel, unit, lanes), spread_over<S>(mean, lanes));
    });
    return {count, mean, sum_of_lanes<S>(squares)};
  }
  // Calls visit(panel, unit, lanes) for the vectors of units of a tile.
  template <class Visit>
  FASTLSTM_INLINE void for_each_panel(const Tile& tile, const Visit& visit) const {
    for (int64_t panel = tile.panels.begin; panel < tile.panels.end; ++panel) {
      const int64_t unit = panel * kLanes<S>;
      with_lanes<kLanes<S>>(unit, shape_.H, [&](auto lanes) { visit(panel, unit, lanes); });
    }
  }
};

// Calls every phase(tile, s) of each of `steps`, one after the other, for each of the thread's
// tiles. If units are shared out, all threads with the same rows finish a phase before the next one
// starts.
template <class... Phase>
FASTLSTM_INLINE void run_phases(const Plan& plan, const LstmShape& shape, Team& team, Range steps,
                                const Phase&... phases) {
  if (plan.by_rows) {
    return plan.for_each_tile(shape, team.thread(), [&](const Tile& tile) {
      for (int64_t s = steps.begin; s < steps.end; ++s) (phases(tile, s), ...);
    });
  }
  if (!plan.has_tiles(team.thread())) return;
  Team part = plan.part_of(team);
  for (int64_t s = steps.begin; s < steps.end; ++s) {
    const auto run = [&](const auto& phase) {
      plan.for_each_tile(shape, team.thread(), [&](const Tile& tile) { phase(tile, s); });
      part.barrier();
    };
    (run(phases), ...);
  }
}

}  // namespace
}  // namespace fastlstm::cpu
