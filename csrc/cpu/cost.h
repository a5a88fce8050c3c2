// A model of the time that the steps of a call take, to choose how to divide them among threads.
//
// Its constants are fitted to a Zen 4 core; only their ratios matter. `make plans` compares its
// choice with the other ways to divide a call.
#pragma once

#include "../lstm.h"
#include "formats.h"
#include "kernels.h"

namespace fastlstm::cpu {

namespace {

// Bytes of weights that stay in a thread's L2 from step to step: half of it. CPUs with tiles have 2
// MiB of L2, others 1.
#if defined(FASTLSTM_TILES)
constexpr int64_t kL2WeightBytes = 1024 * 1024;
#else
constexpr int64_t kL2WeightBytes = 512 * 1024;
#endif

// The work of one step in each group: W_hh in panels, the cells of `vectors` vectors of units, and
// the rows that are multiplied, which other threads have written.
struct StepWork {
  int64_t panels, panel_bytes, vectors, row_bytes;
};

// How many parts the rows of each group are cut into, and how many the panels of all groups: each
// thread has the panels of one part for the rows of another.
struct Cut {
  int row_parts = 1, panel_parts = 1;
};

// All times are in nanoseconds.
constexpr double kCellTime = 20;    // a vector of units in one row
constexpr double kStepTime = 150;   // the latency of the cell, and pointers
constexpr double kWakeTime = 5000;  // of the other threads, once a call; 2,500 if they still spin
constexpr double kWakeThreadTime = 150;  // more for each thread after the second
constexpr double kBarrierTime = 50;      // and, each time that the number of threads doubles:
constexpr double kRoundTime = 100;
constexpr double kTasksTime = 30;  // to see that a thread has no tasks left
constexpr double kWorthwhile = 0.03;
constexpr double kExchangeTime = 0.04;    // to read a byte that another thread has just written
constexpr double kMultiplyTime = 0.0043;  // to multiply one byte of a panel by one row, at best
constexpr double kApart = 0.25;  // the part of the shorter one of reads and products that does not
                                 // overlap with the longer one

// The time to read a byte of weights that a thread reads in every step, by where they stay.
inline double read_time(int64_t bytes) {
  if (bytes <= 32 * 1024) return 0.0051;
  if (bytes <= kL2WeightBytes) return 0.0087;
  return bytes <= 16 * 1024 * 1024 ? 0.013 : 0.09;
}

// A step of `panels` panels for `rows` rows. The first block of rows brings a panel from
// where the weights stay; the others find it in the nearest cache that holds a panel.
inline double step_time(const StepWork& work, int64_t rows, int64_t panels, int64_t bytes) {
  const int64_t blocks = greater(ceil_div(rows, 6), 1);
  const double multiply = kMultiplyTime * static_cast<double>(rows) / static_cast<double>(blocks);
  const auto block = [&](double read) {
    return multiply > read ? multiply + kApart * read : read + kApart * multiply;
  };
  const double product = block(read_time(bytes)) +
                         static_cast<double>(blocks - 1) * block(read_time(work.panel_bytes));
  const double cells = kCellTime * static_cast<double>(rows * work.vectors) /
                       static_cast<double>(greater(work.panels, 1));
  return static_cast<double>(panels) * (product * static_cast<double>(work.panel_bytes) + cells);
}

// A step of the thread that has most to do, if the call is divided by rows or by panels. By rows, a
// thread runs all steps of a group before it goes on to the next one, so only W_hh of one group has
// to stay in its cache.
inline double step_by_rows(const LstmShape& shape, const StepWork& work, int threads) {
  const int64_t rows = ceil_div(shape.G * shape.B, threads), in_group = lesser(rows, shape.B);
  const int64_t groups = ceil_div(rows, greater(in_group, 1));
  return static_cast<double>(groups) *
         (step_time(work, in_group, work.panels, work.panels * work.panel_bytes) + kStepTime);
}

// A barrier of so many threads: team.h goes in rounds, whose number grows like the logarithm.
inline double barrier_time(int threads) {
  double time = threads > 1 ? kBarrierTime : 0;
  for (int reached = 1; reached < threads; reached *= 2) time += kRoundTime;
  return time;
}

// A step that is cut by rows and panels, but not by rows alone. The threads of one part of the rows
// exchange these, and wait for each other. Half of an exchange is left out, as much as two threads
// take: the other constants were fitted to those, and contain it.
inline double step_of_cut(const LstmShape& shape, const StepWork& work, Cut cut) {
  const int64_t rows = ceil_div(shape.B, cut.row_parts);
  const int64_t panels = ceil_div(shape.G * work.panels, cut.panel_parts);
  const double others = cut.panel_parts > 2 ? 0.5 - 1.0 / cut.panel_parts : 0;
  return step_time(work, rows, panels, panels * work.panel_bytes) + kStepTime +
         barrier_time(cut.panel_parts) +
         kExchangeTime * others * static_cast<double>(rows * work.row_bytes);
}

// The cut of which a step is expected to take least time; up to `threads` threads have a part.
inline Cut best_cut(const LstmShape& shape, const StepWork& work, int threads) {
  Cut best;
  double least = 0;
  for (int row_parts = 1; row_parts == 1 || row_parts <= lesser(threads / 2, shape.B);
       row_parts *= 2) {
    const int64_t panel_parts = lesser(threads / row_parts, shape.G * work.panels);
    const Cut cut = {row_parts, static_cast<int>(greater(panel_parts, 1))};
    const double time = step_of_cut(shape, work, cut);
    if (row_parts == 1 || time < least) best = cut, least = time;
  }
  return best;
}

// The time of a step on so many threads, cut as is best, and how many of them can have a part. (A
// call of few rows that reads its weights as they lie is cut by panels, whatever a step takes.)
struct BestStep {
  double time;
  int64_t parts;

  BestStep(const LstmShape& shape, const StepWork& work, int threads) {
    const Cut cut = best_cut(shape, work, threads);
    const double by_rows = step_by_rows(shape, work, threads);
    time = step_of_cut(shape, work, cut);
    parts = greater(int64_t{cut.row_parts} * cut.panel_parts, 2);  // vectors may be half as long
    if (by_rows <= time) {
      time = by_rows;
      parts = greater(parts, lesser(threads, shape.G * shape.B));
    }
  }
};

// The number of threads to use for a call that multiplies all weights with all rows `times` times:
// one if waking the others and waiting for them at every step costs more than it saves, and else
// as many as pay: twice as many have to save kWorthwhile of the time. All `num_threads` are woken
// then, see team.h. Numbers between two halvings are not tried, except as many as there are panels
// or rows: a choice takes 0.1 us of two threads, and 1 to 3 us of 64.
inline int worthwhile_threads(const LstmShape& shape, int num_threads, int times) {
#if defined(FASTLSTM_FORCE_PLAN)
  if (forced_plan != ForcedPlan::none) return num_threads;
#endif
  if (num_threads == 1) return 1;
  const int64_t size = shape.dtype == DType::float64 ? 8 : shape.dtype == DType::bfloat16 ? 2 : 4;
  const int64_t units = kVectorBytes / greater(size, 4), panels = ceil_div(shape.H, units);
  const int64_t row_bytes = (shape.P ? shape.P : shape.H) * size, bytes = 4 * units * row_bytes;
  const StepWork work = {panels, bytes, ceil_div(shape.H, 64 / greater(size, 4)), row_bytes};
  const double steps = static_cast<double>(shape.T);
  const int64_t columns = times * (shape.I + shape.H) - shape.H;  // of products without recurrence
  const double rest = kMultiplyTime * steps * static_cast<double>(shape.B * shape.G) *
                      static_cast<double>(4 * shape.H * columns * size);
  const double alone = steps * step_by_rows(shape, work, 1) + rest;
  const double wake = kWakeTime + kWakeThreadTime * (num_threads - 2);
  if (alone < wake) return 1;
  // Gradients are computed by all threads: each 512 rows take two barriers, and a look at the tasks
  // of each thread. Those of two threads are in the constants. The forward pass is computed by the
  // threads that have a part of every step.
  const auto gradients = static_cast<double>(ceil_div(shape.T * shape.B * shape.G, 512));
  const auto time_of = [&](int threads) {
    const BestStep step(shape, work, threads);
    const double time = steps * step.time + wake;
    if (times == 1) return time + rest / static_cast<double>(step.parts);
    const double waits = 2 * (barrier_time(threads) - barrier_time(2)) + kTasksTime * (threads - 2);
    return time + rest / threads + gradients * waits;
  };
  int best = num_threads;
  double least = time_of(best);
  const auto consider = [&](int64_t count) {
    if (count < 2 || count >= best) return;
    const double time = time_of(static_cast<int>(count));
    if (time <= (1 + kWorthwhile) * least) best = static_cast<int>(count), least = time;
  };
  const int64_t all_rows = shape.G * shape.B, all_panels = shape.G * panels;
  for (int64_t count = num_threads; count > 1; count /= 2) {
    consider(count);
    for (const int64_t exact : {greater(all_rows, all_panels), lesser(all_rows, all_panels)}) {
      if (exact < count && exact > count / 2) consider(exact);
    }
  }
  return least < alone ? best : 1;
}

// The same for a backward pass. It recomputes steps on as many threads as the forward pass has, for
// the same bits.
inline int backward_threads(const LstmShape& shape, int num_threads) {
  const int threads = worthwhile_threads(shape, num_threads, 2);
  if (!shape.checkpoint_every) return threads;
  return static_cast<int>(greater(threads, worthwhile_threads(shape, num_threads, 1)));
}

}  // namespace
}  // namespace fastlstm::cpu
