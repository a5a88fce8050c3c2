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

// The work of one step in each group: W_hh in panels, and the cells of `vectors` vectors of units.
struct StepWork {
  int64_t panels, panel_bytes, vectors;
};

// All times are in nanoseconds.
constexpr double kCellTime = 20;     // a vector of units in one row
constexpr double kStepTime = 150;    // the latency of the cell, and pointers
constexpr double kWakeTime = 5000;   // of the other threads, once a call; 2,500 if they still spin
constexpr double kBarrierTime = 50;  // and, for each thread, to read its progress:
constexpr double kProgressTime = 50;
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
inline double step_by_panels(const LstmShape& shape, const StepWork& work, int threads) {
  const int64_t panels = ceil_div(shape.G * work.panels, threads);
  const double waits = threads == 1 ? 0 : kBarrierTime + kProgressTime * threads;
  return step_time(work, shape.B, panels, panels * work.panel_bytes) + kStepTime + waits;
}

// The number of threads to use for a call that multiplies all weights with all rows `times` times:
// all, or one if waking the others and waiting for them at every step costs more than it saves.
inline int worthwhile_threads(const LstmShape& shape, int num_threads, int times) {
#if defined(FASTLSTM_FORCE_PLAN)
  if (forced_plan != ForcedPlan::none) return num_threads;
#endif
  const int64_t size = shape.dtype == DType::float64 ? 8 : shape.dtype == DType::bfloat16 ? 2 : 4;
  const int64_t units = 64 / greater(size, 4), vectors = ceil_div(shape.H, units);
  const int64_t bytes = 4 * units * (shape.P ? shape.P : shape.H) * size;
  const StepWork work = {vectors, bytes, vectors};
  const double steps = static_cast<double>(shape.T);
  const int64_t columns = times * (shape.I + shape.H) - shape.H;  // of products without recurrence
  const double rest = kMultiplyTime * steps * static_cast<double>(shape.B * shape.G) *
                      static_cast<double>(4 * shape.H * columns * size);
  const double by_rows = step_by_rows(shape, work, num_threads);
  const double by_panels = step_by_panels(shape, work, num_threads);
  const double together =
      steps * (by_rows < by_panels ? by_rows : by_panels) + rest / num_threads + kWakeTime;
  return together < steps * step_by_rows(shape, work, 1) + rest ? num_threads : 1;
}

}  // namespace
}  // namespace fastlstm::cpu
