// The plans that fit on a device, and how long a step of each should take, by a model with the
// constants `Costs`. The model only compares plans of one problem, so most errors of the constants
// cancel. This is host code and calls no driver.
#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <limits>
#include <stdexcept>
#include <utility>

#include "cuda/recurrence.h"

namespace fastlstm::cuda {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

int number_bytes(DType dtype) {
  return dtype == DType::float32 ? 4 : dtype == DType::float64 ? 8 : 2;
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

std::string words(const char* format, ...) {
  char buffer[256];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(buffer, sizeof buffer, format, arguments);
  va_end(arguments);
  return buffer;
}

// How products are computed. Only float32 has a choice; other types count as tf32.
Products products_of(const Problem& problem) {
  return problem.dtype == DType::float32 ? problem.products : Products::tf32;
}

// Sets a block's part of the weights and of the batch, for a plan with kernel, k_warps and tiles
// set. Returns false if there is no such plan for the problem.
bool spread(const Problem& problem, Plan& plan) {
  const bool split =
      plan.k_warps == 1 || plan.k_warps == 2 || plan.k_warps == 4 || plan.k_warps == 8;
  if (plan.kernel < 0 || plan.kernel >= kVariants || !split) return false;
  if (plan.tiles < 1 || plan.tiles > problem.B || problem.B > kMostRows) return false;
  const Variant variant = cuda::variant(problem.direction, plan.kernel);
  const int row_warps = kWarps / plan.k_warps;
  plan.units = row_warps * variant.m_tiles * units_of_tile(problem.direction);
  // A thread has its rows of a pass in registers.
  if (plan.units * 8 * variant.n_tiles > kThreads * kThreadRows) return false;
  plan.slices = static_cast<int>(ceil_div(problem.H, plan.units));
  const int64_t rows = round_up(ceil_div(problem.B, plan.tiles), 8);
  plan.tile_rows = static_cast<int>(std::min(rows, problem.B));
  if (ceil_div(problem.B, plan.tile_rows) != plan.tiles)
    return false;  // equal to a plan with fewer tiles
  if (variant.n_tiles > 1 && plan.tile_rows <= 8) return false;
  const int64_t units_read = problem.layered ? 2 * problem.H : problem.H;
  const int64_t numbers = (problem.direction == Direction::forward ? 1 : 4) * units_read;
  const int64_t steps = ceil_div(numbers * number_bytes(problem.dtype), kStepBytes);
  const int of_warp = static_cast<int>(round_up(ceil_div(steps, plan.k_warps), 2));
  plan.register_steps = std::min(of_warp, register_steps(products_of(problem), variant.m_tiles));
  plan.shared_steps = of_warp - plan.register_steps;
  return true;
}

// The largest power of two below a number of steps.
int power_below(int steps) {
  int power = 1;
  while (2 * power < steps) power *= 2;
  return power;
}

// Sets the memory of a plan after `spread`, with chunk_steps set. Returns false unless chunk_steps
// are a whole row, or a smaller power of two.
bool make_room(const Problem& problem, Plan& plan) {
  const int steps = plan.register_steps + plan.shared_steps, chunk = plan.chunk_steps;
  const bool power = chunk >= 2 && (chunk & (chunk - 1)) == 0;
  const bool alone = plan.slices == 1 && !problem.layered;  // its operand is read by no other block
  if (chunk != steps && (alone || !power || chunk > steps)) return false;
  const int passes = lay_out(problem, plan).passes;
  const int chunks = passes * static_cast<int>(ceil_div(steps, chunk));
  plan.stages = alone ? 0 : std::min(chunks, kStages);
  const Recurrence r = lay_out(problem, plan);
  plan.shared_bytes = r.shared_bytes;
  const int64_t operands = 2 * problem.G * problem.B * r.row_bytes;
  const int64_t bytes = counter_bytes(problem.G, plan.tiles) + operands;
  plan.workspace_bytes = alone ? 0 : round_up(bytes, 256);
  return true;
}

std::string too_large(const Problem& problem, const Device& device) {
  // The fewest units of a block for which all blocks fit on the multiprocessors, one on each.
  int64_t units = problem.direction == Direction::forward ? 8 : 16;
  while (problem.G * ceil_div(problem.H, units) > device.multiprocessors) units *= 2;
  const bool layers = problem.layered;
  const int matrices = layers ? 2 : 1;
  return words(
      "%s of H=%lld, %s=%lld in %s %s %lld KB of each of %lld multiprocessors, which do not "
      "fit into %zu KB of registers and shared memory beside what a step needs",
      layers ? "W_ih and W_hh" : "W_hh", static_cast<long long>(problem.H), layers ? "L" : "G",
      static_cast<long long>(problem.G), name(problem.dtype), layers ? "take" : "takes",
      static_cast<long long>(matrices * units * 4 * problem.H * number_bytes(problem.dtype) / 1024),
      static_cast<long long>(problem.G * ceil_div(problem.H, units)),
      (device.shared_memory + sizeof(float) * weight_registers(products_of(problem)) * kThreads) /
          1024);
}

// Why no plan of the problem can fit on the device, whatever its memory; empty if one may.
std::string refusal(const Problem& problem, const Device& device) {
  if (problem.dtype == DType::float64) {
    return "float64 has no resident kernel: tensor cores multiply it at 1/16 of the rate";
  }
  if (device.major < 8) {
    return words("compute capability %d.%d is below 8.0", device.major, device.minor);
  }
  if (problem.B > kMostRows) {
    return words("B=%lld rows are more than the %lld that kernels count",
                 static_cast<long long>(problem.B), static_cast<long long>(kMostRows));
  }
  if (problem.G > kMaxGroups || problem.G > device.multiprocessors) {
    return words(problem.layered ? "L=%lld layers are more than the %d multiprocessors"
                                 : "G=%lld groups are more than the %d multiprocessors",
                 static_cast<long long>(problem.G), std::min(device.multiprocessors, kMaxGroups));
  }
  return {};
}

}  // namespace

Recurrence lay_out(const Problem& problem, const Plan& plan) {
  const bool is_forward = problem.direction == Direction::forward;
  const Variant variant = cuda::variant(problem.direction, plan.kernel);
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
  r.group_bytes = problem.B * r.row_bytes;
  r.slot_bytes = problem.G * r.group_bytes;
  while (1 << r.k_shift < r.k_warps) ++r.k_shift;
  while (1 << r.unit_shift < r.units) ++r.unit_shift;
  r.row_step = kThreads / r.units;
  while (r.copy_shift < 5 && (16 << r.copy_shift) < r.chunk_steps * kStepBytes) ++r.copy_shift;
  r.copy_rows = kThreads / r.k_warps >> r.copy_shift;
  r.row_stride = r.k_warps * r.chunk_steps * kStepBytes + kRowPad;
  r.copy_from = r.copy_rows * r.row_bytes;
  r.copy_to = r.copy_rows * r.row_stride;
  r.stage_bytes = r.stage_rows * r.row_stride;
  r.stages_bytes = r.stages * r.stage_bytes;
  r.sum_row = is_forward ? (r.units + 1) * 16 : (r.units + 4) * 4;

  if (problem.layered) {
    r.feeds = is_forward ? 1 : -1;
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
  const int64_t sums = int64_t{r.k_warps} * r.pass_rows * r.sum_row;
  r.sums = take(is_forward ? sums : std::max<int64_t>(sums, kGradientBytes));
  r.state = take(rows * r.units * 4);
  r.lengths = take(r.tile_rows * 4);
  r.flags = take(kFlagSteps * rows);
  // While weights are loaded, they pass through the rest of the memory.
  const int ring = load_ring(variant.m_tiles) * variant.m_tiles * kSlotTileBytes;
  bytes = std::max<int64_t>(bytes, r.operand + int64_t{kWarps} * ring);
  r.shared_bytes = static_cast<int>(std::min<int64_t>(bytes, std::numeric_limits<int>::max()));
  return r;
}

Plans plans(const Problem& problem, const Device& device) {
  Plans found{{}, refusal(problem, device)};
  if (!found.refusal.empty()) return found;
  std::vector<std::pair<double, Plan>> ranked;
  for (int kernel = 0; kernel < kVariants; ++kernel) {
    for (int k_warps = 1; k_warps <= kWarps; k_warps *= 2) {
      for (int tiles = 1; tiles <= device.multiprocessors && tiles <= problem.B; ++tiles) {
        Plan plan{};
        plan.kernel = kernel, plan.k_warps = k_warps, plan.tiles = tiles;
        if (!spread(problem, plan)) continue;
        if (problem.G * tiles * plan.slices > device.multiprocessors) continue;
        plan.chunk_steps = plan.register_steps + plan.shared_steps;
        for (; make_room(problem, plan); plan.chunk_steps = power_below(plan.chunk_steps)) {
          if (plan.shared_bytes > device.shared_memory) continue;
          ranked.emplace_back(step_ns(problem, plan, Costs{}), plan);
        }
      }
    }
  }
  // Stable: of equally fast plans the one with the largest chunks comes first.
  const auto less = [](const auto& a, const auto& b) { return a.first < b.first; };
  std::stable_sort(ranked.begin(), ranked.end(), less);
  for (const auto& [ns, plan] : ranked) found.best_first.push_back(plan);
  if (ranked.empty()) found.refusal = too_large(problem, device);
  return found;
}

double step_ns(const Problem& problem, const Plan& plan, const Costs& costs) {
  const Variant variant = cuda::variant(problem.direction, plan.kernel);
  const Recurrence r = lay_out(problem, plan);
  const int warps = kWarps / 4;  // of one tensor core
  const int products_each = products_of(problem) == Products::tf32x3 ? 3 : 1;
  const int mma_of_step = variant.m_tiles * variant.n_tiles;
  const double mma = products_each * std::max(costs.multiply * warps * mma_of_step,
                                              mma_of_step == 1 ? costs.latency / 2 : costs.latency);
  const double multiply = r.steps * mma;
  const double read = costs.read_fragment * kWarps *
                      (plan.shared_steps * variant.m_tiles + r.steps * variant.n_tiles / 2.0);
  const double rows_of_thread = ceil_div(plan.units * r.pass_rows, kThreads);
  const double pass = (problem.direction == Direction::forward ? 1 : 2) * costs.pass;
  const double gates = costs.finish_row * rows_of_thread + pass;
  const double chunks = r.passes * ceil_div(r.steps, r.chunk_steps);
  // While a block waits for others, it publishes the rows of its last pass.
  const double published = costs.publish_row * rows_of_thread * (r.passes - (plan.stages > 0));
  // With 8 k warps a warp waits for its own copies only; else all warps meet at each chunk.
  const double chunk = (plan.k_warps == kWarps ? 1 : 1.5) * costs.chunk;
  const double begun = plan.stages > 0 ? chunk * chunks : 0;
  double ns = (r.passes * (std::max(multiply, read) + gates) + published + begun) / costs.clock;
  if (plan.stages > 0) {
    const double blocks = static_cast<double>(problem.G) * plan.tiles * plan.slices;
    const double rate = std::min(costs.l2_of_one, costs.l2 / blocks);
    // Two chunks are on their way.
    ns += costs.barrier + std::max(costs.trip_to_l2 + 1.0 * plan.tile_rows * r.row_bytes / rate,
                                   costs.trip_to_l2 * chunks / 2);
  }
  return ns;
}

void check_plan(const Problem& problem, const Plan& plan) {
  const auto of = [&] {
    const char* pass = problem.direction == Direction::forward ? "forward" : "backward";
    return words("of the %s pass of %s%s B=%lld G=%lld H=%lld", pass,
                 problem.layered ? "layers in " : "", name(problem.dtype),
                 static_cast<long long>(problem.B), static_cast<long long>(problem.G),
                 static_cast<long long>(problem.H));
  };
  Plan right{};
  right.kernel = plan.kernel, right.k_warps = plan.k_warps;
  right.tiles = plan.tiles, right.chunk_steps = plan.chunk_steps;
  if (!spread(problem, right) || !make_room(problem, right)) {
    throw std::invalid_argument(
        words("plan: expected one %s, got kernel=%d k_warps=%d tiles=%d chunk_steps=%d",
              of().c_str(), plan.kernel, plan.k_warps, plan.tiles, plan.chunk_steps));
  }
  std::vector<size_t> expected;
  for_each_member(right, [&](const char*, auto number) { expected.push_back(number); });
  auto next = expected.begin();
  for_each_member(plan, [&](const char* member, auto number) {
    if (*next != static_cast<size_t>(number)) {
      throw std::invalid_argument(words("plan: %s: expected %zu %s, got %lld", member, *next,
                                        of().c_str(), static_cast<long long>(number)));
    }
    ++next;
  });
}

}  // namespace fastlstm::cuda
