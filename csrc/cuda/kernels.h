// The CUDA kernels: the plans for a problem, and launchers that follow any of them.
//
// Pointers are to memory of the device, but for Shape::reverse. Arrays, types and the meaning of
// each field are as in lstm.h, with these differences: igates are computed by cuBLAS beforehand, so
// there is no input, and digates come out, so there is no dinput; h is not projected; rows are
// never packed. G is at most 256.
//
// A launcher enqueues its work on a stream and returns. It neither waits nor allocates, so it can
// be captured in a CUDA graph. It throws CudaError if a call of the driver fails.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "lstm.h"

namespace fastlstm::cuda {

// A failed call of CUDA's. The text has the call and the name, number and description of the error.
struct CudaError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Sizes of a call, and the order in which each group and each row is read.
struct Shape {
  DType dtype;
  int64_t T, B, G, H;
  const bool* reverse;     // (G) true: this group reads time backwards; memory of the CPU
  const int64_t* lengths;  // (B) or null, as in lstm.h
  const uint8_t* reset;    // (T, B) or null, as in lstm.h
};

// A call whose W_hh stays on chip for the whole sequence.
//
// If `layered`, the groups are the layers of one LSTM, all of one direction, which go as a
// wavefront: each but the first reads the h of the layer below it. igates are then those of the
// first layer, y and dy those of the last one, without a dimension G; the reserve is (G, T, B, 5H);
// cells and dcells are null.
struct RecurrenceCall {
  Shape shape;
  bool layered;
  LstmWeight weight_ih;  // layered: (4H, H) of each layer but the first, G - 1 arrays; else none
  LstmWeight weight_hh;  // (4H, H)
  LstmWeight weight_ch;  // (3H) peepholes, or none
  const void* hx;        // (G, B, H)
  const void* cx;        // (G, B, H)
  void* workspace;       // Plan::workspace_bytes
};

struct RecurrenceForward : RecurrenceCall {
  const void* igates;        // (T, B, G, 4H), biases included
  int64_t igates_stride[3];  // of T, B, G
  LstmWeight bias;  // layered: (4H) of each layer but the first, the sum of both; else none
  void* y;          // (T, B, G, H), or (T, B, H) if layered
  void* y_below;    // layered: (G - 1, T, B, H) y of the layers but the last, or null
  void* hy;         // (G, B, H)
  void* cy;         // (G, B, H)
  void* cells;      // (T, B, G, H) or null
  void* reserve;    // (T, B, G, 5H) or null
};

// digates may be the first 4H columns of the reserve, which are then overwritten. Past a row's
// length they are zero. dbias and dweight_ch are sums over the steps and over one tile of the
// batch: the gradient is their sum over the tiles, in order.
struct RecurrenceBackward : RecurrenceCall {
  const void* dy;             // (T, B, G, H), or (T, B, H) if layered, or null: zero
  int64_t dy_stride[3];       // of T, B, G
  const void* dhy;            // (G, B, H) or null: zero
  const void* dcy;            // (G, B, H) or null: zero
  const void* dcells;         // (T, B, G, H) or null: zero
  const void* reserve;        // (T, B, G, 5H) as forward wrote it
  void* digates;              // (T, B, G, 4H)
  int64_t digates_stride[3];  // of T, B, G
  void* dbias;                // (tiles, G, 4H) float, or null
  void* dweight_ch;           // (tiles, G, 3H) float, or null
  void* dhx;                  // (G, B, H)
  void* dcx;                  // (G, B, H)
};

// One step of a call whose W_hh does not fit on chip. Steps count from 0 in the order in which each
// group reads. Sums are float, or double where dtype is float64.
struct CellForward {
  Shape shape;
  int64_t step;
  const void* igates;        // (T, B, G, 4H), biases included
  int64_t igates_stride[3];  // of T, B, G
  const void* hgates;        // (G, B, 4H) h W_hh^T, of the h before this step
  LstmWeight weight_ch;      // (3H) peepholes, or none
  void* h;                   // (G, B, H) becomes the h after this step, where a row has it
  void* c;                   // (G, B, H) sums: the c before this step, becomes the c after it
  void* y;                   // (T, B, G, H)
  void* cells;               // (T, B, G, H) or null
  void* reserve;             // (T, B, G, 5H) or null
};

struct CellBackward {
  Shape shape;
  int64_t step;
  const void* dy;             // (T, B, G, H) or null: zero
  int64_t dy_stride[3];       // of T, B, G
  const void* dcells;         // (T, B, G, H) or null: zero
  const void* reserve;        // (T, B, G, 5H) as forward wrote it
  LstmWeight weight_ch;       // (3H) peepholes, or none
  const void* cx;             // (G, B, H)
  void* digates;              // (T, B, G, 4H): those of this step are written
  int64_t digates_stride[3];  // of T, B, G
  void* dhgates;              // (G, B, 4H) the same digates, which the caller multiplies by W_hh: 0
                              // where a row has no such step, or where a reset cuts it off
  void* dh;                   // (G, B, H) sums: dhy plus what the step after sent through W_hh;
                              // becomes 0 where a row has this step
  void* dc;                   // (G, B, H) sums: the gradient of c after this step, becomes that of
                              // c before it
  void* dbias;                // (G, 4H) sums, which this step's are added to, or null
  void* dweight_ch;           // (G, 3H) sums, which this step's are added to, or null
};

// What the cells of a call compute beyond the equations of an LSTM: see CellOptions of
// fastlstm/options.py. Arrays are of the call's dtype.
struct CellOptions {
  const void* hidden_mask;   // (G, B, H) a factor of h' in W_hh h', or null: 1
  const void* keep_h;        // (T, B, G, H) the share of h' in h, or null: 0
  int64_t keep_h_stride[3];  // of T, B, G
  const void* keep_c;        // (T, B, G, H) the share of c' in c, or null: 0
  int64_t keep_c_stride[3];  // of T, B, G
  double cell_clip;          // the largest magnitude of c before keep_c is applied; 0: no limit
};

// Calls with options whose W_hh stays on chip; not layered.
struct RecurrenceForwardWithOptions : RecurrenceForward {
  CellOptions options;
};
struct RecurrenceBackwardWithOptions : RecurrenceBackward {
  CellOptions options;
  void* dh_kept;  // (G, B, H) float, scratch where there is a keep_h
};

// hgates are here h W_hh^T of the masked h.
struct CellForwardWithOptions : CellForward {
  CellOptions options;
  void* masked_h;  // (G, B, H) becomes hidden_mask * h, where h is written; null without a mask
};

// dh becomes, where a row has this step, what of it goes past the product to the step before: the
// caller multiplies the product dhgates W_hh by the mask before it adds it to dh.
struct CellBackwardWithOptions : CellBackward {
  CellOptions options;
};

// Calls visit(name, field) for every field of a struct. Python passes the fields by these names.
template <class Visit>
void for_each_field(Shape& shape, Visit&& visit) {
  visit("dtype", shape.dtype);
  visit("T", shape.T);
  visit("B", shape.B);
  visit("G", shape.G);
  visit("H", shape.H);
  visit("reverse", shape.reverse);
  visit("lengths", shape.lengths);
  visit("reset", shape.reset);
}

template <class Visit>
void for_each_field(RecurrenceCall& call, Visit&& visit) {
  for_each_field(call.shape, visit);
  visit("layered", call.layered);
  visit("weight_ih", call.weight_ih);
  visit("weight_hh", call.weight_hh);
  visit("weight_ch", call.weight_ch);
  visit("hx", call.hx);
  visit("cx", call.cx);
  visit("workspace", call.workspace);
}

template <class Visit>
void for_each_field(RecurrenceForward& call, Visit&& visit) {
  for_each_field(static_cast<RecurrenceCall&>(call), visit);
  visit("igates", call.igates);
  visit("igates_stride", call.igates_stride);
  visit("bias", call.bias);
  visit("y", call.y);
  visit("y_below", call.y_below);
  visit("hy", call.hy);
  visit("cy", call.cy);
  visit("cells", call.cells);
  visit("reserve", call.reserve);
}

template <class Visit>
void for_each_field(RecurrenceBackward& call, Visit&& visit) {
  for_each_field(static_cast<RecurrenceCall&>(call), visit);
  visit("dy", call.dy);
  visit("dy_stride", call.dy_stride);
  visit("dhy", call.dhy);
  visit("dcy", call.dcy);
  visit("dcells", call.dcells);
  visit("reserve", call.reserve);
  visit("digates", call.digates);
  visit("digates_stride", call.digates_stride);
  visit("dbias", call.dbias);
  visit("dweight_ch", call.dweight_ch);
  visit("dhx", call.dhx);
  visit("dcx", call.dcx);
}

template <class Visit>
void for_each_field(CellForward& call, Visit&& visit) {
  for_each_field(call.shape, visit);
  visit("step", call.step);
  visit("igates", call.igates);
  visit("igates_stride", call.igates_stride);
  visit("hgates", call.hgates);
  visit("weight_ch", call.weight_ch);
  visit("h", call.h);
  visit("c", call.c);
  visit("y", call.y);
  visit("cells", call.cells);
  visit("reserve", call.reserve);
}

template <class Visit>
void for_each_field(CellBackward& call, Visit&& visit) {
  for_each_field(call.shape, visit);
  visit("step", call.step);
  visit("dy", call.dy);
  visit("dy_stride", call.dy_stride);
  visit("dcells", call.dcells);
  visit("reserve", call.reserve);
  visit("weight_ch", call.weight_ch);
  visit("cx", call.cx);
  visit("digates", call.digates);
  visit("digates_stride", call.digates_stride);
  visit("dhgates", call.dhgates);
  visit("dh", call.dh);
  visit("dc", call.dc);
  visit("dbias", call.dbias);
  visit("dweight_ch", call.dweight_ch);
}

template <class Visit>
void for_each_field(RecurrenceForwardWithOptions& call, Visit&& visit) {
  for_each_field(static_cast<RecurrenceForward&>(call), visit);
  visit("options", call.options);
}

template <class Visit>
void for_each_field(RecurrenceBackwardWithOptions& call, Visit&& visit) {
  for_each_field(static_cast<RecurrenceBackward&>(call), visit);
  visit("options", call.options);
  visit("dh_kept", call.dh_kept);
}

template <class Visit>
void for_each_field(CellForwardWithOptions& call, Visit&& visit) {
  for_each_field(static_cast<CellForward&>(call), visit);
  visit("options", call.options);
  visit("masked_h", call.masked_h);
}

template <class Visit>
void for_each_field(CellBackwardWithOptions& call, Visit&& visit) {
  for_each_field(static_cast<CellBackward&>(call), visit);
  visit("options", call.options);
}

// What a plan depends on.
struct Device {
  int major, minor;  // compute capability
  int multiprocessors;
  size_t shared_memory;  // bytes that one block may ask for
};

// How products of float32 are computed. For other types there is one way.
enum class Products : int { tf32 = 0, tf32x3 = 1 };

enum class Direction { forward, backward };

// How a recurrence is divided among the blocks of a device. `slices` blocks share out the hidden
// units of one group for one tile of the batch. They keep their part of W_hh on chip (in layers
// that of W_ih too), and wait for each other at a barrier every step. The first four members are
// chosen; the others follow from them.
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

// The constants of the model by which plans are ranked, for an H100. They are from its data sheet
// and published microbenchmarks (mma, shared memory, L2), guesses (barrier, trip_to_l2), or counted
// in the machine code for sm_90 (finish_row and those after it). None of them has been measured
// yet; benchmarks/gpu/tune.py measures them.
struct Costs {
  double barrier = 1000;     // ns
  double trip_to_l2 = 600;   // ns, before the first byte of the operand comes
  double l2 = 5500;          // bytes a ns, all multiprocessors
  double l2_of_one = 100;    // bytes a ns
  double clock = 1.7;        // cycles a ns
  double multiply = 8;       // cycles of one mma on one of 4 tensor cores
  double latency = 33;       // cycles of an mma that waits for the one before
  double read_fragment = 4;  // cycles of shared memory, which has 128 bytes in one
  double finish_row = 370;   // cycles that the gates of a row take a thread
  double publish_row = 800;  // cycles to write its results and to fetch its next numbers
  double pass = 350;         // cycles of the rest of a pass; twice as many backward
  double chunk = 450;        // cycles to begin a chunk of the operand and to start the next copy
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
  visit("publish_row", costs.publish_row);
  visit("pass", costs.pass);
  visit("chunk", costs.chunk);
}

struct Plans {
  std::vector<Plan> best_first;  // by step_ns
  std::string refusal;           // why there is no plan; empty if there is one
};

// What the plans of a call depend on, beside the device.
struct Problem {
  Direction direction;
  DType dtype;
  int64_t B, G, H;
  bool layered;
  Products products;
};

// All plans of a problem that fit on a device.
Plans plans(const Problem& problem, const Device& device);

// What the model expects a step of a plan to take, in ns.
double step_ns(const Problem& problem, const Plan& plan, const Costs& costs);

// Throws std::invalid_argument unless the plan is one of the problem, on whatever device. The
// launchers check theirs: memory is written where a plan says.
void check_plan(const Problem& problem, const Plan& plan);

// How a launcher runs a call.
struct Stream {
  int device;    // CUDA's number of the device
  void* stream;  // a cudaStream_t on it
};

// The whole sequence in one cooperative launch.
void forward(const RecurrenceForward& call, Products products, const Plan& plan, Stream stream);
void backward(const RecurrenceBackward& call, Products products, const Plan& plan, Stream stream);
void forward_with_options(const RecurrenceForwardWithOptions& call, Products products,
                          const Plan& plan, Stream stream);
void backward_with_options(const RecurrenceBackwardWithOptions& call, Products products,
                           const Plan& plan, Stream stream);

// One step.
void cell_forward(const CellForward& call, Stream stream);
void cell_backward(const CellBackward& call, Stream stream);
void cell_forward_with_options(const CellForwardWithOptions& call, Stream stream);
void cell_backward_with_options(const CellBackwardWithOptions& call, Stream stream);

// The device of that number; throws CudaError where there is no driver.
Device device(int number);

}  // namespace fastlstm::cuda
