// Which layout of a recurrence takes the least time on a device, by a model of a step's cost; or
// why it does not fit. Host code alone: it asks no driver.
//
// The constants are those of an H100's data sheet and of published microbenchmarks (mma: 8 cycles a
// tensor core; shared memory: 128 bytes a cycle; L2: 5.5 TB/s in all, 64 bytes a cycle for one
// multiprocessor) and two guesses, of the barrier and of a trip to L2. They decide between layouts
// of one shape, in which most of them cancel. Nothing here has been measured yet.
#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <limits>

#include "cuda/recurrence.h"

namespace fastlstm::cuda {
namespace {

constexpr double kBarrier = 1000;    // ns
constexpr double kTripToL2 = 600;    // ns, before the first byte of the operand comes
constexpr double kL2 = 5500;         // bytes a ns, all multiprocessors
constexpr double kL2OfOne = 100;     // bytes a ns
constexpr double kClock = 1.7;       // cycles a ns
constexpr double kMultiply = 8;      // cycles of one mma on one of 4 tensor cores
constexpr double kLatency = 33;      // cycles of an mma that waits for the one before
constexpr double kReadFragment = 4;  // cycles of shared memory
constexpr double kFinishRow = 150;   // cycles that the gates of a row take a warp
constexpr double kPass = 200;        // cycles of a pass's two meetings of all threads

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

int number_bytes(const LstmShape& shape) {
  return shape.dtype == DType::float32 ? 4 : shape.dtype == DType::float64 ? 8 : 2;
}

const char* name(DType dtype) {
  switch (dtype) {
    case DType::float32:
      return "float32";
    case DType::float64:
      return "float64";
    case DType::bfloat16:
      return "bfloat16";
    case DType::float16:
      return "float16";
  }
  return "?";
}

Plan refuse(const char* format, ...) {
  thread_local char words[256];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(words, sizeof words, format, arguments);
  va_end(arguments);
  Plan plan{};
  plan.refusal = words;
  return plan;
}

// A block's share of the weights, and the passes, of a layout; true if all blocks fit side by side.
bool spread(Direction direction, const LstmShape& shape, Products products, const Device& device,
            int tiles, Plan& plan) {
  const Variant variant = cuda::variant(direction, plan.kernel);
  const int row_warps = kWarps / plan.k_warps;
  plan.units = row_warps * variant.m_tiles * units_of_tile(direction);
  // What one thread finishes of a pass is in its registers.
  if (plan.units * 8 * variant.n_tiles > kThreads * kThreadRows) return false;
  plan.slices = static_cast<int>(ceil_div(shape.H, plan.units));
  plan.tile_rows = static_cast<int>(std::min(round_up(ceil_div(shape.B, tiles), 8), shape.B));
  plan.tiles = static_cast<int>(ceil_div(shape.B, plan.tile_rows));
  if (plan.tiles != tiles) return false;  // the same as with fewer
  if (variant.n_tiles > 1 && plan.tile_rows <= 8) return false;
  if (shape.G * plan.tiles * plan.slices > device.multiprocessors) return false;
  const int64_t numbers = (direction == Direction::forward ? 1 : 4) * shape.H;
  const int64_t steps = ceil_div(numbers * number_bytes(shape), kStepBytes);
  const int of_warp = static_cast<int>(round_up(ceil_div(steps, plan.k_warps), 2));
  plan.register_steps = std::min(of_warp, register_steps(products, variant.m_tiles));
  plan.shared_steps = of_warp - plan.register_steps;
  return true;
}

// Finds room for the operand; false if there is none.
bool fit(Direction direction, const LstmShape& shape, const Device& device, Plan& plan) {
  const int steps = plan.register_steps + plan.shared_steps;
  const auto fits = [&](int stages, int chunk_steps) {
    plan.stages = stages;
    plan.chunk_steps = chunk_steps;
    plan.shared_bytes = lay_out(direction, shape, plan).shared_bytes;
    return plan.shared_bytes <= device.shared_memory;
  };
  if (plan.slices == 1) return fits(0, steps);
  const int passes = lay_out(direction, shape, plan).passes;
  if (fits(std::min(passes, kStages), steps)) return true;
  int chunk_steps = 2;  // a power of two
  while (2 * chunk_steps < steps) chunk_steps *= 2;
  for (; chunk_steps >= 2; chunk_steps /= 2) {
    const int chunks = passes * static_cast<int>(ceil_div(steps, chunk_steps));
    if (fits(std::min(chunks, kStages), chunk_steps)) return true;
  }
  return false;
}

// ns a step.
double cost(Direction direction, const LstmShape& shape, Products products, const Plan& plan) {
  const Variant variant = cuda::variant(direction, plan.kernel);
  const Recurrence r = lay_out(direction, shape, plan);
  const int warps = kWarps / 4;  // of one tensor core
  const int products_each = products == Products::tf32x3 ? 3 : 1;
  const int mma_of_step = variant.m_tiles * variant.n_tiles;
  const double mma = products_each * std::max(kMultiply * warps * mma_of_step,
                                              mma_of_step == 1 ? kLatency / 2 : kLatency);
  const double multiply = r.steps * mma;
  const double read = kReadFragment * kWarps *
                      (plan.shared_steps * variant.m_tiles + r.steps * variant.n_tiles / 2.0);
  const double rows_of_thread = ceil_div(plan.units * r.pass_rows, kThreads);
  const double gates = (direction == Direction::forward ? 1 : 2) * kFinishRow * rows_of_thread;
  double ns = r.passes * (std::max(multiply, read) + gates + kPass) / kClock;
  if (plan.slices > 1) {
    const double blocks = static_cast<double>(shape.G) * plan.tiles * plan.slices;
    const double rate = std::min(kL2OfOne, kL2 / blocks);
    const double chunks = r.passes * ceil_div(r.steps, r.chunk_steps);  // two are on their way
    ns += kBarrier +
          std::max(kTripToL2 + 1.0 * plan.tile_rows * r.row_bytes / rate, kTripToL2 * chunks / 2);
  }
  return ns;
}

Plan too_large(Direction direction, const LstmShape& shape, Products products,
               const Device& device) {
  // The fewest units of a block with which one block a multiprocessor is enough.
  int64_t units = direction == Direction::forward ? 8 : 16;
  while (shape.G * ceil_div(shape.H, units) > device.multiprocessors) units *= 2;
  return refuse(
      "W_hh of H=%lld, G=%lld in %s takes %lld KB of each of %lld multiprocessors, which do not "
      "fit "
      "into %zu KB of registers and shared memory beside what a step needs",
      static_cast<long long>(shape.H), static_cast<long long>(shape.G), name(shape.dtype),
      static_cast<long long>(units * 4 * shape.H * number_bytes(shape) / 1024),
      static_cast<long long>(shape.G * ceil_div(shape.H, units)),
      (device.shared_memory + sizeof(float) * weight_registers(products) * kThreads) / 1024);
}

Plan plan(Direction direction, const LstmShape& shape, Products products, const Device& device) {
  if (shape.dtype != DType::float32) products = Products::tf32;  // other types have only one way
  if (shape.dtype == DType::float64) {
    return refuse("float64 has no resident kernel: tensor cores multiply it at 1/16 of the rate");
  }
  if (device.major < 8) {
    return refuse("compute capability %d.%d is below 8.0", device.major, device.minor);
  }
  if (shape.G > kMaxGroups || shape.G > device.multiprocessors) {
    return refuse("G=%lld groups are more than the %d multiprocessors",
                  static_cast<long long>(shape.G), std::min(device.multiprocessors, kMaxGroups));
  }
  Plan best{};
  double least = std::numeric_limits<double>::infinity();
  for (int kernel = 0; kernel < kVariants; ++kernel) {
    for (int k_warps = 1; k_warps <= kWarps; k_warps *= 2) {
      for (int tiles = 1; tiles <= device.multiprocessors && tiles <= shape.B; ++tiles) {
        Plan plan{};
        plan.kernel = kernel;
        plan.k_warps = k_warps;
        if (!spread(direction, shape, products, device, tiles, plan)) continue;
        if (!fit(direction, shape, device, plan)) continue;
        const double ns = cost(direction, shape, products, plan);
        if (ns >= least) continue;
        least = ns;
        best = plan;
      }
    }
  }
  return best.units ? best : too_large(direction, shape, products, device);
}

}  // namespace

Recurrence lay_out(Direction direction, const LstmShape& shape, const Plan& plan) {
  const bool is_forward = direction == Direction::forward;
  const Variant variant = cuda::variant(direction, plan.kernel);
  Recurrence r{};
  r.slices = plan.slices;
  r.tiles = plan.tiles;
  r.tile_rows = plan.tile_rows;
  r.units = plan.units;
  r.k_warps = plan.k_warps;
  r.pass_rows = 8 * variant.n_tiles;
  r.passes = static_cast<int>(ceil_div(plan.tile_rows, r.pass_rows));
  r.stage_rows = plan.tile_rows < 8 ? plan.tile_rows : r.pass_rows;
  r.steps = plan.register_steps + plan.shared_steps;
  r.row_bytes = r.k_warps * r.steps * kStepBytes;
  r.chunk_steps = plan.chunk_steps;
  r.stages = plan.stages;
  if (r.chunk_steps >= r.steps) {
    r.chunk_shift = 30;
  } else {
    while (1 << r.chunk_shift < r.chunk_steps * kStepBytes) ++r.chunk_shift;
  }

  int64_t bytes = 0;
  const auto take = [&bytes](int64_t count) {
    const int64_t before = bytes;
    bytes += round_up(count, 16);
    return static_cast<int>(before);
  };
  take(int64_t{kWarps} * variant.m_tiles * plan.shared_steps * kFragmentBytes);
  const int64_t rows = r.passes * r.pass_rows;
  const int64_t row = int64_t{r.k_warps} * r.chunk_steps * kStepBytes + kRowPad;
  r.operand = take(row * (r.stages ? r.stages * r.stage_rows : 2 * rows));
  const int64_t sums = int64_t{r.k_warps} * r.pass_rows;
  r.sums = take(is_forward ? sums * (r.units + 1) * 16
                           : std::max<int64_t>(sums * (r.units + 4) * 4, kGradientBytes));
  r.state = take(rows * r.units * 4);
  r.lengths = take(r.tile_rows * 4);
  r.flags = take(kFlagSteps * rows);
  r.shared_bytes = static_cast<int>(std::min<int64_t>(bytes, std::numeric_limits<int>::max()));
  for (int64_t group = 0; shape.reverse && group < shape.G; ++group) {
    if (shape.reverse[group]) r.reverse[group / 32] |= uint32_t{1} << group % 32;
  }
  return r;
}

Plan plan_forward(const LstmShape& shape, Products products, const Device& device) {
  return plan(Direction::forward, shape, products, device);
}

Plan plan_backward(const LstmShape& shape, Products products, const Device& device) {
  return plan(Direction::backward, shape, products, device);
}

}  // namespace fastlstm::cuda
