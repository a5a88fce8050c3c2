// Copies the operand of a step from the workspace to shared memory, for the tensor cores.
//
// Each block of a tile writes a part of the operand in one step, and reads all of it in the next.
// It is exchanged through L2, in two slots: one is written while the other is read. If a tile has
// one block only, the two slots are in its shared memory.
//
// The warps that share a k warp copy its part of every row, and nobody else reads it: by cp.async,
// 16 bytes a thread, in the order of the passes, a chunk of steps at a time, as many chunks ahead
// as there is room for. With 8 k warps, a warp copies for itself and waits for no other.
//
// A row of a layer has two halves: the part of the layer that feeds it, which is zero for the first
// one, and the part of its own blocks. Otherwise a row has its own part only.
//
// Model of a step: one round trip to L2 (0.6 us; the others overlap), and rows x row_bytes at 42
// bytes a ns for each multiprocessor if all of them read.
#pragma once

#include "cuda/block.cuh"

namespace fastlstm::cuda {

// kSeveral: there are several blocks for each group; otherwise there may be one.
template <int kPassRows, bool kSeveral>
class Operand {
 public:
  __device__ __forceinline__ Operand(const Recurrence& r, const Block& block)
      : r_(r), rows_(block.rows) {
    shared_ = shared_memory() + r.operand;
    group_rows_ = r.operands + block.group * r.group_bytes + block.first_row * r.row_bytes;
    copy_row_ = find_copy_row();
    copy_byte_ = find_copy_byte();
    from_ = find_from();
    to_ = find_to();
    read_ = find_read();
    one_warp_ = r.k_warps == kWarps;
  }

  // Whether one block has the whole operand.
  __device__ __forceinline__ bool is_local() const { return !kSeveral && r_.stages == 0; }

  // A row of the tile in the operand of step s, in shared memory or, for several blocks, in the
  // workspace.
  __device__ __forceinline__ unsigned char* local_row(int s, int row) const {
    return dynamic_shared() + r_.operand + slot(s) + row * row_stride();
  }
  __device__ __forceinline__ unsigned char* row(int s, int row) const {
    return group_rows_ + (s & 1) * r_.slot_bytes + row * r_.row_bytes;
  }
  // The same row in the operand of the layer that this one feeds.
  __device__ __forceinline__ unsigned char* fed_row(int s, int row) const {
    return this->row(s, row) + r_.feeds * r_.group_bytes;
  }

  // Clears an operand in shared memory. The launcher clears the workspace.
  __device__ __forceinline__ void clear() const {
    if (!is_local()) return;
    for (int i = threadIdx.x * 16; i < 2 * slot(1); i += kThreads * 16) {
      store_shared(shared_ + i, make_uint4(0, 0, 0, 0));
    }
  }

  // Starts the first copies of a step, before its first pass.
  __device__ __forceinline__ void begin_step(int s) {
    step_ = s;
    if (is_local()) return;
    source_ = row(s, 0) + (kSeveral ? from_ : find_from());
    copied_ = copy_stage_ = stage_ = 0;
    copy_rows_ = rows_;
    copy<true>();
    copy();
  }

  // Waits for the next chunk of a pass. Synchronises the threads that share a k warp: the chunk has
  // arrived, or h is written, and they have read the chunk before, which the next copy overwrites.
  // Returns the address at which this lane reads its first two steps: 64 bytes of each row, of
  // which load_matrices takes 16 from each lane.
  __device__ __forceinline__ unsigned begin_chunk(int pass) {
    if (is_local()) {
      __syncthreads();
      return shared_ + (kSeveral ? read_ : find_read()) + slot(step_) +
             pass * kPassRows * row_stride();
    }
    wait_copies<kStages - 2>();
    if (is_of_one_warp()) {
      __syncwarp();
    } else {
      __syncthreads();
    }
    copy();
    const unsigned at = shared_ + (kSeveral ? read_ : find_read()) + stage_;
    stage_ = next(stage_);
    return at;
  }

  // Whether a k warp is one warp, so that begin_chunk does not synchronise the block.
  __device__ __forceinline__ bool is_of_one_warp() const {
    return kSeveral ? one_warp_ : r_.k_warps == kWarps && !is_local();
  }

  // Bytes from a row to the next one in shared memory.
  __device__ __forceinline__ int row_stride() const { return r_.row_stride; }

 private:
  // The first row and byte that this thread copies, and where they are in an operand and in a
  // chunk. The kernels of plain calls keep them in registers.
  __device__ __forceinline__ int k_warp() const { return threadIdx.x / 32 & (r_.k_warps - 1); }
  __device__ __forceinline__ int in_part() const {  // of the threads that share a k warp
    return (threadIdx.x / 32 >> r_.k_shift) * 32 + threadIdx.x % 32;
  }
  __device__ __forceinline__ int find_copy_row() const { return in_part() >> r_.copy_shift; }
  __device__ __forceinline__ int find_copy_byte() const {
    return (in_part() & ((1 << r_.copy_shift) - 1)) * 16;
  }
  __device__ __forceinline__ int find_from() const {
    return find_copy_row() * r_.row_bytes + k_warp() * r_.steps * kStepBytes + find_copy_byte();
  }
  __device__ __forceinline__ int find_to() const {
    return find_copy_row() * row_stride() + k_warp() * r_.chunk_steps * kStepBytes +
           find_copy_byte();
  }

  __device__ __forceinline__ int find_read() const {
    // Lanes of rows that do not exist read the last one that does.
    const int lane = threadIdx.x % 32, row = min(lane % 8, r_.stage_rows - 1);
    return row * row_stride() + lane / 8 * 16 + k_warp() * r_.chunk_steps * kStepBytes;
  }

  // Bytes from slot 0 of an operand in shared memory to that of step s.
  __device__ __forceinline__ int slot(int s) const {
    return (s & 1) * r_.passes * kPassRows * row_stride();
  }

  // Starts the copy of the next chunk. wait_copies counts committed groups, so an empty group is
  // committed after the last chunk. All threads take the same way, whatever they copy: a branch
  // on which they part costs more than a copy.
  template <bool kFirst = false>
  __device__ __forceinline__ void copy() {
    if (kFirst || copy_rows_ > 0) {
      const int part = r_.steps * kStepBytes, chunk = r_.chunk_steps * kStepBytes;
      const int copy_row = kSeveral ? copy_row_ : find_copy_row();
      const int copy_byte = kSeveral ? copy_byte_ : find_copy_byte();
      // What there is from this lane's first row and byte on.
      const int rows = min(kPassRows, copy_rows_) - copy_row;
      const int bytes = min(chunk, part - copied_) - copy_byte;
      constexpr int kTogether = kSeveral ? 4 : 1;  // copies of several need more registers
      int at = 0;
      do {
        const int left = at < bytes ? rows : 0;
        const unsigned char* from = source_ + at;
        unsigned to = shared_ + copy_stage_ + (kSeveral ? to_ : find_to()) + at;
        int row = 0;
        do {
#pragma unroll
          for (int i = 0; i < kTogether; ++i) {
            copy_async_16(row < left, to, from);
            row += r_.copy_rows;
            from += r_.copy_from;
            to += r_.copy_to;
          }
        } while (row < r_.stage_rows);
        at += 512;
      } while (at < chunk);
      copy_stage_ = next(copy_stage_);
      source_ += chunk;
      copied_ += chunk;
      if (copied_ >= part) {
        source_ += kPassRows * r_.row_bytes - copied_;
        copied_ = 0;
        copy_rows_ -= kPassRows;
      }
    }
    commit_copies();
  }

  // Where the copy after the one at `stage` is, in bytes.
  __device__ __forceinline__ int next(int stage) const {
    stage += r_.stage_bytes;
    return stage == r_.stages_bytes ? 0 : stage;
  }

  const Recurrence& r_;
  const int rows_;  // of the block
  unsigned shared_;
  unsigned char* group_rows_;  // row 0 of the tile in slot 0
  int copy_row_, copy_byte_;   // the first that this thread copies
  int from_, to_, read_;
  int step_;
  bool one_warp_;
  const unsigned char* source_;  // where this thread begins in the chunk that is copied next
  int copied_, copy_rows_;       // bytes of a pass that are copied, and rows from that pass on
  int copy_stage_, stage_;       // where the next chunk is copied to, and is read
};

}  // namespace fastlstm::cuda
