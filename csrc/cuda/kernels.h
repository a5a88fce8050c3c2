// What the CUDA kernels offer: a plan for a problem, and launchers that follow it.
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
// A launcher enqueues its work on a stream and returns. It neither waits nor allocates, so it can
// be captured in a CUDA graph. It throws CudaError if the driver refuses.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "lstm.h"

namespace fastlstm::cuda {

// A call of CUDA's that failed, in words: the call, its code's name, number and description.
struct CudaError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// What a plan depends on.
struct Device {
  int major, minor;  // compute capability
  int multiprocessors;
  size_t shared_memory;  // bytes that one block may ask for
};

// How products of float32 are made; other types have only one way.
enum class Products : int { tf32 = 0, tf32x3 = 1 };

// How the recurrence of a shape is laid over a device: `slices` blocks share the hidden units of
// one group and one tile of the batch, keep their part of W_hh on chip, and meet at a barrier of
// their own each step.
struct Plan {
  const char* refusal;  // null, or why the shape does not fit on the device; the rest is then 0.
                        // The words are good until this thread makes its next plan
  int kernel;           // which instantiation
  int units;            // hidden units of one block
  int slices;           // blocks of one barrier
  int tiles;            // tiles of the batch
  int tile_rows;        // rows of the batch in each but the last
  int k_warps;          // warps among which a sum over k is split
  int register_steps;   // steps along k whose weights are in registers, for each warp
  int shared_steps;     // and in shared memory
  int chunk_steps;      // steps along k, of each warp, that one copy of the operand brings
  int stages;           // such copies that have room in shared memory; 0: one block has the whole
                        // operand, which never leaves its shared memory
  size_t shared_bytes;  // dynamic shared memory of a block
};

Plan plan_forward(const LstmShape& shape, Products products, const Device& device);
Plan plan_backward(const LstmShape& shape, Products products, const Device& device);

// Bytes, 256-byte aligned, never zeroed by the caller.
size_t forward_workspace(const LstmShape& shape, const Plan& plan);
size_t backward_workspace(const LstmShape& shape, const Plan& plan);

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
