// How the recurrence of a call is divided among blocks, warps, registers and shared memory: shared
// by the plan, the launchers and the kernels.
//
// Each step multiplies the operand, a row of `numbers` for each row of the batch (h, or the digates
// of the step after), by weights that stay on chip. A block has the weights of `units` hidden
// units. Its 8 warps are (row warps) x (k warps): a row warp has m_tiles tiles of 16 rows of
// weights, a k warp its part of every sum. The batch goes through in passes of 8 n_tiles rows.
//
// Layers run as a wavefront: a layer computes a step while the layer that feeds it computes the
// next one. Its operand is twice as wide: the result of that layer at the same step, and its own of
// the step before. At the barrier of a layer its blocks also wait until the layer that feeds them
// has written, and the layer that they feed has read.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cell.h"
#include "cuda/kernels.h"

namespace fastlstm::cuda {

constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;
constexpr int kStepBytes = 32;       // of a row of the operand, in one step along k: one mma
constexpr int kFragmentBytes = 512;  // of the 16 rows of weights in one step along k
constexpr int kRowPad = 16;          // bytes: 8 rows then lie in 8 different groups of 4 banks
constexpr int kStages = 3;           // copies of the operand: one is read, two are under way
constexpr int kThreadRows = 4;       // the most rows of a pass for which a thread computes the cell
constexpr int kPlainThreadRows = 2;  // the same for the kernels of plain calls
constexpr int kFlagSteps = 4;        // steps whose flags are kept, a power of two: a thread may
                                     // set those of step s + 1 while another reads those of s - 1
constexpr int kGradientBytes = 7 * 4 * kThreads;  // of a block's gradients of biases and peepholes
constexpr int kMaxGroups = 256;
constexpr int64_t kMostRows = INT32_MAX;       // of the batch, in all groups
constexpr int64_t kMostSteps = INT32_MAX - 1;  // of time: kernels count one more than there are

// A bit for each group: whether it is reversed. Kernels get it by value.
struct ReverseBits {
  uint32_t words[kMaxGroups / 32];

  // Throws std::invalid_argument if there are too many groups.
  void set(const Shape& shape) {
    if (shape.G > kMaxGroups) {
      throw std::invalid_argument("G: expected at most " + std::to_string(kMaxGroups) +
                                  " groups, got " + std::to_string(shape.G));
    }
    for (int64_t group = 0; group < shape.G; ++group) {
      if (shape.reverse[group]) words[group / 32] |= uint32_t{1} << group % 32;
    }
  }
  FASTLSTM_INLINE bool operator[](int group) const { return words[group / 32] >> group % 32 & 1; }
};

// The template arguments of kernel number `kernel`. Forward, two tiles of 16 rows hold the gates i,
// f and g, o of 8 units; backward, one tile holds 16 units.
struct Variant {
  int m_tiles, n_tiles;
};
constexpr int kVariants = 4;
constexpr Variant variant(Direction direction, int kernel) {
  return {(direction == Direction::forward ? 2 : 1) << kernel / 2, 1 + kernel % 2};
}
// Weights that a thread has in registers, 32 bits each: as many as fit without spills on three
// architectures, beside sums and prefetched numbers.
constexpr int weight_registers(Products products) {
  return products == Products::tf32 || products == Products::tf32x3 ? 128 : 112;
}
// A warp's steps along k whose weights are in registers; even.
constexpr int register_steps(Products products, int m_tiles) {
  // With two steps more these would spill: a single tile, of which there are two sums unless its
  // weights are split, and four tiles whose weights are split.
  const bool is_split = products == Products::tf32x3;
  return weight_registers(products) / 8 / m_tiles * 2 - (m_tiles == (is_split ? 4 : 1) ? 2 : 0);
}
// Steps of weights that a warp has under way while it loads them, and bytes of each for a tile of
// 16 rows: together 24 KB of a block, or 48 with four tiles, at 0.8 us of latency.
constexpr int load_ring(int m_tiles) { return m_tiles == 1 ? 4 : 2; }
constexpr int kSlotTileBytes = 16 * (kStepBytes + 16);
constexpr int units_of_tile(Direction direction) {
  return direction == Direction::forward ? 4 : 16;
}

// A kernel's view of its plan. Rows and steps along k are padded, with weights of zero and numbers
// of zero, so any H will do.
struct Recurrence {
  int slices, tiles, tile_rows, units, k_warps;
  int pass_rows, passes;
  int stage_rows;  // in shared memory: pass_rows, or the tile's if they are fewer than 8
  int steps;       // along k, of each k warp: even
  int row_bytes;   // of the operand: all k warps' steps
  int chunk_steps, stages;
  int k_shift;     // log2 of k_warps
  int unit_shift;  // log2 of units
  int row_step;    // rows from one that a thread computes to its next one: kThreads / units
  int copy_shift;  // log2 of the threads that copy a k warp's part of a row side by side, <= 5
  int copy_rows;   // rows that the threads of a k warp copy at a time
  int row_stride;  // bytes from a row of the operand to the next in shared memory: a chunk, padded
  int copy_from, copy_to;         // bytes from a row that a thread copies to its next one: operand,
                                  // shared memory
  int stage_bytes, stages_bytes;  // of one copy of the operand and of all
  int sum_row;                    // bytes from a row of the sums to the next

  // Bytes before each part of a block's shared memory, and all of it. At 0 are the weights.
  int operand;  // (stages, stage_rows, k_warps, chunk_steps), rows padded; or two whole operands
  int sums;     // (k_warps, pass_rows, units), rows padded: float4 forward, float backward,
                // with room for kGradientBytes
  int state;    // (passes * pass_rows, units) float: c or dc
  int lengths;  // (tile_rows) int
  int flags;    // (kFlagSteps, passes * pass_rows) bytes: what a row does at a step
  int shared_bytes;

  int feeds;  // a group feeds that of the next number (1), of the one before (-1), or none (0)
  int64_t between_rows, between_groups;  // places in y and reserve, from a row or group to the next

  ReverseBits reverse;
  unsigned* counters;               // (G, tiles), each on a line of kCounterBytes
  unsigned char* operands;          // (2, G, B, row_bytes)
  int64_t slot_bytes, group_bytes;  // of one of the two, and of a group in it
};
constexpr int kCounterBytes = 128;

// Bytes of all counters of a call, which come before its operands in the workspace.
constexpr size_t counter_bytes(int64_t G, int tiles) {
  return (G * tiles * kCounterBytes + 255) / 256 * 256;
}

// What follows from the plan: all but the members from between_rows on.
Recurrence lay_out(const Problem& problem, const Plan& plan);

template <class Call>
struct PassArguments {
  Call call;
  Recurrence recurrence;
};

template <class Call>
constexpr bool kHasOptions = std::is_same_v<Call, RecurrenceForwardWithOptions> ||
                             std::is_same_v<Call, RecurrenceBackwardWithOptions>;

template <class Call>
using PassKernel = void (*)(PassArguments<Call>);
using ForwardKernel = PassKernel<RecurrenceForward>;
using BackwardKernel = PassKernel<RecurrenceBackward>;
using ForwardOptionsKernel = PassKernel<RecurrenceForwardWithOptions>;
using BackwardOptionsKernel = PassKernel<RecurrenceBackwardWithOptions>;

// The kernels of each type, each in a file of its own, so that they compile in parallel.
// `is_plain`: those for calls with neither lengths nor resets.
ForwardKernel forward_bfloat16(int kernel, bool is_plain);
ForwardKernel forward_float16(int kernel, bool is_plain);
ForwardKernel forward_tf32(int kernel, bool is_plain);
ForwardKernel forward_tf32x3(int kernel, bool is_plain);
BackwardKernel backward_bfloat16(int kernel, bool is_plain);
BackwardKernel backward_float16(int kernel, bool is_plain);
BackwardKernel backward_tf32(int kernel, bool is_plain);
BackwardKernel backward_tf32x3(int kernel, bool is_plain);

// Those for calls with options, with or without lengths and resets.
ForwardOptionsKernel forward_bfloat16(int kernel);
ForwardOptionsKernel forward_float16(int kernel);
ForwardOptionsKernel forward_tf32(int kernel);
ForwardOptionsKernel forward_tf32x3(int kernel);
BackwardOptionsKernel backward_bfloat16(int kernel);
BackwardOptionsKernel backward_float16(int kernel);
BackwardOptionsKernel backward_tf32(int kernel);
BackwardOptionsKernel backward_tf32x3(int kernel);

}  // namespace fastlstm::cuda
