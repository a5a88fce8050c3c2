// What the CUDA kernels offer: the plans for a problem, and launchers that follow any of them.
//
// The structs of lstm.h are the arguments, with these differences: shape.I and shape.P are 0 (the
// input is igates, and what igates are made of is the business of cuBLAS); shape.first_row is null;
// by_length is not read. shape.reverse is in the memory of the CPU, every other pointer in that of
// the device. LstmBackward's dinput are digates (T, B, G, 4H), never null, at dinput_stride: they
// may be the first 4H columns of `reserve`, which are then overwritten. Past a row's length they
// are zero. dbias and dweight_ch are sums over the time steps and over one tile of the batch:
// (tiles, G, ...) float, in the order of the tiles; a sum of those in that order is the gradient.
// G is at most 256.
//
// Layers of one LSTM can go as a wavefront: shape.I is then H, and groups are the layers, all of
// one direction. Each but the first reads the h of the one before it, so weight_ih (4H, H) and
// bias_ih (4H), of both biases, have G - 1 arrays; the input is that of the first and dy that of
// the last layer, and so is y (T, B, H). That of the others, (G - 1, T, B, H), goes to `states`, or
// nowhere if that is null. The reserve is (G, T, B, 5H); cells and dcells are null.
//
// A launcher enqueues its work on a stream and returns. It neither waits nor allocates, so it can
// be captured in a CUDA graph. It throws CudaError if the driver refuses.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "lstm.h"

namespace fastlstm::cuda {

// A call of CUDA's that failed, in words: the call, its code's name, number and description.
struct CudaError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Whether the groups of a shape are layers.
constexpr bool layered(const LstmShape& shape) { return shape.I > 0; }

// What a plan depends on.
struct Device {
  int major, minor;  // compute capability
  int multiprocessors;
  size_t shared_memory;  // bytes that one block may ask for
};

// How products of float32 are made; other types have only one way.
enum class Products : int { tf32 = 0, tf32x3 = 1 };

enum class Direction { forward, backward };

// How the recurrence of a shape is laid over a device: `slices` blocks share the hidden units of
// one group and one tile of the batch, keep their part of W_hh on chip (of layers that of W_ih
// too), and meet at a barrier of their own each step. The first four members are chosen, and all
// others follow from them.
struct Plan {
  int kernel;              // which instantiation
  int k_warps;             // warps among which a sum over k is split
  int tiles;               // tiles of the batch
  int chunk_steps;         // steps along k, of each warp, that one copy of the operand brings
  int units;               // hidden units of one block
  int slices;              // blocks of one barrier
  int tile_rows;           // rows of the batch in each tile but the last
  int register_steps;      // steps along k whose weights are in registers, for each warp
  int shared_steps;        // and in shared memory
  int stages;              // copies of the operand that have room in shared memory; 0: one block
                           // has the whole operand, which never leaves its shared memory
  size_t shared_bytes;     // dynamic shared memory of a block
  size_t workspace_bytes;  // of scratch, 256-byte aligned, never zeroed by the caller
};

// Calls visit(name, number) for every member of a plan, in the order above.
template <class SomePlan, class Visit>
void for_each_member(SomePlan&& plan, const Visit& visit) {
  visit("kernel", plan.kernel);
  visit("k_warps", plan.k_warps);
  visit("tiles", plan.tiles);
  visit("chunk_steps", plan.chunk_steps);
  visit("units", plan.units);
  visit("slices", plan.slices);
  visit("tile_rows", plan.tile_rows);
  visit("register_steps", plan.register_steps);
  visit("shared_steps", plan.shared_steps);
  visit("stages", plan.stages);
  visit("shared_bytes", plan.shared_bytes);
  visit("workspace_bytes", plan.workspace_bytes);
}

// The constants of the model by which plans are ranked. Those here are of an H100's data sheet and
// of published microbenchmarks (mma, shared memory, L2), or guesses (the barrier, a trip to L2,
// what the gates of a row and a pass take); benchmarks/gpu/tune.py says what they should be.
// Nothing here has been measured yet.
struct Costs {
  double barrier = 1000;     // ns
  double trip_to_l2 = 600;   // ns, before the first byte of the operand comes
  double l2 = 5500;          // bytes a ns, all multiprocessors
  double l2_of_one = 100;    // bytes a ns
  double clock = 1.7;        // cycles a ns
  double multiply = 8;       // cycles of one mma on one of 4 tensor cores
  double latency = 33;       // cycles of an mma that waits for the one before
  double read_fragment = 4;  // cycles of shared memory, which has 128 bytes in one
  double finish_row = 150;   // cycles that the gates of a row take a warp
  double pass = 200;         // cycles of a pass's two meetings of all threads
};

template <class SomeCosts, class Visit>
void for_each_cost(SomeCosts&& costs, const Visit& visit) {
  visit("barrier", costs.barrier);
  visit("trip_to_l2", costs.trip_to_l2);
  visit("l2", costs.l2);
  visit("l2_of_one", costs.l2_of_one);
  visit("clock", costs.clock);
  visit("multiply", costs.multiply);
  visit("latency", costs.latency);
  visit("read_fragment", costs.read_fragment);
  visit("finish_row", costs.finish_row);
  visit("pass", costs.pass);
}

struct Plans {
  std::vector<Plan> best_first;  // by step_ns; the first one is to be followed
  std::string refusal;           // why there is none
};

// All plans of a shape that fit on a device.
Plans plans(Direction direction, const LstmShape& shape, Products products, const Device& device);

// What the model expects of a step of a plan, ns.
double step_ns(Direction direction, const LstmShape& shape, Products products, const Plan& plan,
               const Costs& costs);

// Throws std::invalid_argument unless the plan is one of the shape, on whatever device. The
// launchers check theirs: memory is written where a plan says.
void check_plan(Direction direction, const LstmShape& shape, Products products, const Plan& plan);

// The whole sequence in one cooperative launch. `device` is CUDA's number of the device, `stream` a
// cudaStream_t on it.
void forward(const LstmForward& call, Products products, const Plan& plan, int device,
             void* stream);
void backward(const LstmBackward& call, Products products, const Plan& plan, int device,
              void* stream);

// One step, where W_hh does not fit: `hgates` (G, B, 4H) is h' W_hh^T. State is float (double for
// float64): `c` (G, B, H) turns from c' into c, and `h` (G, B, H), of the dtype, likewise. Step
// counts from 0 in the order in which each group reads; of call, weight_hh, hx, cx, hy and cy are
// not read.
void cell_forward(const LstmForward& call, int64_t step, const void* hgates, void* h, void* c,
                  int device, void* stream);

// `dh` (G, B, H), float or double, is what the step after sent through W_hh, plus dhy; `dc` turns
// from the gradient of c into that of c'. Writes this step's digates, and the same (G, B, 4H) to
// `dhgates`, which the caller multiplies by W_hh to get the next `dh`: zero where a row has no such
// step or a reset ends there; `dh` itself turns to what passes a row by, 0 where the step is real.
// dbias and dweight_ch (tiles = 1; double for float64) are added to. cx is read; dhx, dcx,
// workspace are not.
void cell_backward(const LstmBackward& call, int64_t step, void* dhgates, void* dh, void* dc,
                   int device, void* stream);

// Of the device of that number; throws CudaError where there is no driver.
Device device(int number);

}  // namespace fastlstm::cuda
