// Copies the operand of a step from the workspace to shared memory, for the tensor cores.
//
// Each block of a tile writes a part of the operand in one step, and reads all of it in the next.
// It is exchanged through L2, in two slots: one is written while the other is read. A block copies
// it to shared memory by cp.async, 16 bytes a thread, in the order of the passes, a chunk of every
// k warp's steps at a time, as many chunks ahead as there is room for. If a tile has one block
// only, the two slots are in its shared memory.
//
// A row of a layer has two halves: the part of the layer that feeds it, which is zero for the first
// one, and the part of its own blocks. Otherwise a row has its own part only.
//
// Model of a step: one round trip to L2 (0.6 us; the others overlap), and rows x row_bytes at 42
// bytes a ns for each multiprocessor if all of them read.
#pragma once

#include "cuda/block.cuh"

namespace fastlstm::cuda {

class Operand {
 public:
  __device__ __forceinline__ Operand(const Shape& shape, const Recurrence& r, const Block& block)
      : shape_(shape), r_(r), block_(block) {
    const int lane = threadIdx.x % 32, k_warp = threadIdx.x / 32 % r.k_warps;
    // Lanes of rows that do not exist read the last one that does.
    lane_offset_ = min(lane % 8, r.stage_rows - 1) * row_stride() + lane / 8 * 16 +
                   k_warp * r.chunk_steps * kStepBytes;
  }

  // A row of the tile in the operand of step s.
  __device__ __forceinline__ unsigned char* row(int s, int row) const {
    if (r_.stages == 0) {
      return shared() + ((s & 1) * r_.passes * r_.pass_rows + row) * row_stride();
    }
    return row_of(block_.group, s, row);
  }
  // The same row in the operand of the layer that this one feeds.
  __device__ __forceinline__ unsigned char* fed_row(int s, int row) const {
    return row_of(block_.fed(), s, row);
  }

  // Clears an operand in shared memory. The launcher clears the workspace.
  __device__ __forceinline__ void clear() const {
    if (r_.stages) return;
    const int bytes = 2 * r_.passes * r_.pass_rows * row_stride();
    for (int i = threadIdx.x * 16; i < bytes; i += kThreads * 16) {
      *reinterpret_cast<uint4*>(shared() + i) = make_uint4(0, 0, 0, 0);
    }
  }

  // Starts the first copies of a step, before its first pass.
  __device__ __forceinline__ void begin_step(int s) {
    source_ = row(s, 0);
    if (r_.stages == 0) return;
    copy_pass_ = copy_chunk_ = copy_stage_ = stage_ = 0;
    copy();
    copy();
  }

  __device__ __forceinline__ void begin_pass(int pass) {
    pass_ = pass;
    steps_left_ = 0;
  }

  // The address at which this lane reads the next two steps of its k warp: 64 bytes of each row, of
  // which load_matrices takes 16 from each lane. All threads must call this equally often.
  __device__ __forceinline__ const unsigned char* next() {
    if (steps_left_ == 0) begin_chunk();
    steps_left_ -= 2;
    const unsigned char* at = at_;
    at_ += 2 * kStepBytes;
    return at;
  }

  // Bytes from a row to the next one in shared memory.
  __device__ __forceinline__ int row_stride() const {
    return r_.k_warps * r_.chunk_steps * kStepBytes + kRowPad;
  }

 private:
  __device__ __forceinline__ unsigned char* row_of(int group, int s, int row) const {
    const int64_t before = ((s & 1) * shape_.G + group) * shape_.B + block_.first_row;
    return r_.operands + (before + row) * r_.row_bytes;
  }

  // Synchronises the threads: the chunk has arrived, or h is written, and all threads have read the
  // chunk before, which the next copy overwrites.
  __device__ __forceinline__ void begin_chunk() {
    steps_left_ = r_.chunk_steps;
    if (r_.stages == 0) {
      __syncthreads();
      at_ = source_ + pass_ * r_.pass_rows * row_stride() + lane_offset_;
      return;
    }
    wait_copies<kStages - 2>();
    __syncthreads();
    copy();
    at_ = shared() + stage_ * stage_bytes() + lane_offset_;
    stage_ = stage_ + 1 == r_.stages ? 0 : stage_ + 1;
  }

  // Starts the copy of the next chunk. wait_copies counts committed groups, so an empty group is
  // committed after the last chunk.
  __device__ __forceinline__ void copy() {
    if (copy_pass_ < r_.passes) {
      const int rows = min(r_.pass_rows, block_.rows - copy_pass_ * r_.pass_rows);
      // A chunk has a piece of every k warp's part of a row, or it is the whole row.
      const bool whole = r_.chunk_steps >= r_.steps;
      const int part = whole ? r_.row_bytes : r_.steps * kStepBytes;
      const int piece = 1 << r_.chunk_shift;
      const int first = whole ? 0 : copy_chunk_ * piece, size = min(piece, part - first);
      // Few rows are copied by all threads, many by a warp each.
      const int across = rows < kWarps ? kThreads : 32;
      const int bytes = row_stride() - kRowPad;
      const unsigned char* from = source_ + copy_pass_ * r_.pass_rows * r_.row_bytes + first;
      unsigned char* to = shared() + copy_stage_ * stage_bytes();
      for (int row = threadIdx.x / across; row < rows; row += kThreads / across) {
        for (int at = threadIdx.x % across * 16; at < bytes; at += across * 16) {
          const int k_warp = at >> r_.chunk_shift, in_piece = at & (piece - 1);
          if (in_piece < size) {
            copy_async_16(to + row * row_stride() + at,
                          from + row * r_.row_bytes + k_warp * part + in_piece);
          }
        }
      }
      copy_stage_ = copy_stage_ + 1 == r_.stages ? 0 : copy_stage_ + 1;
      if (first + size == part) {
        copy_chunk_ = 0;
        ++copy_pass_;
      } else {
        ++copy_chunk_;
      }
    }
    commit_copies();
  }

  __device__ __forceinline__ int stage_bytes() const { return r_.stage_rows * row_stride(); }
  __device__ __forceinline__ unsigned char* shared() const { return dynamic_shared() + r_.operand; }

  const Shape& shape_;
  const Recurrence& r_;
  const Block block_;  // by value: what refers to a part of its own object stays in memory
  int lane_offset_;
  const unsigned char* source_;  // row 0 of this step's operand
  const unsigned char* at_;      // where this lane reads next
  int pass_, stage_, steps_left_;
  int copy_pass_, copy_chunk_, copy_stage_;
};

}  // namespace fastlstm::cuda
