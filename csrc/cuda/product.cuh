// A warp's weights, which stay on chip, and their product with the operand of a step.
//
// The weights are the operand `a` of the tensor cores, so the rows of a tile are rows of weights,
// and its 8 columns are 8 rows of the batch. B = 1 wastes 7/8 of each product, which is cheap, and
// no room for weights. The weights are loaded once for all steps, from W_hh in torch's layout: the
// first steps along k to registers, the others to shared memory in the order of fragments, where
// each lane reads its 16 bytes without bank conflicts. A fragment is used for n_tiles products.
// With two, reading it from shared memory (512 bytes at 128 a cycle) takes as long as the products
// (8 cycles each on one of four tensor cores), so half of the weights can be in shared memory at no
// cost.
#pragma once

#include "cuda/elements.cuh"
#include "cuda/operand.cuh"

namespace fastlstm::cuda {

// kFast: it takes more registers, for two sums of each tile where there are one or two tiles, and
// to read weights from shared memory ahead. kAlongK: neighbours in a row of W_hh are neighbours
// along k, not rows of a tile.
template <class Element, int kMTiles, int kNTiles, bool kAlongK, bool kFast>
class Product {
  static constexpr int kRegisterSteps = register_steps(Element::kProducts, kMTiles);
  using Bits = typename Element::Bits;
  using Word = Bits[Element::kPerWord];
  // A product that adds to the one before waits 33 cycles, the time of four products. Another warp
  // and other tiles fill that time, unless there are one or two tiles only.
  // Split weights leave no registers for a second sum.
  static constexpr bool kSplits = Element::kProducts == Products::tf32x3;
  static constexpr int kChains = !kSplits && kMTiles * kNTiles <= (kFast ? 2 : 1) ? 2 : 1;

 public:
  static constexpr int kStepNumbers = 8 * Element::kPerWord;  // along k
  // Of a row of a slot, padded so that lanes read it without bank conflicts.
  static constexpr int kRowNumbers = kAlongK ? kStepNumbers : 16 * kMTiles;
  static constexpr int kRowBytes = kRowNumbers * sizeof(Bits) + 16;
  static constexpr int kRing = load_ring(kMTiles), kSlotBytes = kSlotTileBytes * kMTiles;
  // d of each tile, in the layout of mma.
  using Sums = float[kMTiles][kNTiles][4];

  __device__ __forceinline__ explicit Product(const Recurrence& r)
      : steps_(r.steps), chunk_steps_(r.chunk_steps) {
    const int warp = threadIdx.x / 32;
    shared_ = shared_memory() + find_shared();
    first_step_ = (warp & (r.k_warps - 1)) * steps_;
  }

  // Loads the weights, by copies of 16 bytes to a ring of slots in shared
  // memory, several steps ahead. A slot has the tiles of one step in rows as
  // they are in W_hh. weight_at(step, row, i) is the address of number i of
  // such a row, or null for zero; steps are numbered through all k warps.
  // is_aligned: 16 bytes of a row are aligned to their size, and either all
  // zero or all in W_hh.
  template <class WeightAt>
  __device__ __forceinline__ void load(int staging, bool is_aligned, const WeightAt& weight_at) {
    const int slots = staging + threadIdx.x / 32 * kRing * kSlotBytes;
    const auto copy = [&](int s) {
      if (s < steps_) copy_step(slots + s % kRing * kSlotBytes, s, is_aligned, weight_at);
      commit_copies();
    };
    const auto take = [&](int s, uint32_t (&words)[kMTiles][4]) {
      wait_copies<kRing - 1>();
      __syncwarp();
      read_step(slots + s % kRing * kSlotBytes, words);
      __syncwarp();
      copy(s + kRing);
    };
#pragma unroll 1
    for (int s = 0; s < kRing; ++s) copy(s);
#pragma unroll
    for (int s = 0; s < kRegisterSteps; ++s) {
      if (s < steps_) take(s, registers_[s]);
    }
#pragma unroll 1
    for (int s = kRegisterSteps; s < steps_; ++s) {
      uint32_t words[kMTiles][4];
      take(s, words);
#pragma unroll
      for (int m = 0; m < kMTiles; ++m) {
        store_shared(shared_ + ((s - kRegisterSteps) * kMTiles + m) * kFragmentBytes,
                     make_uint4(words[m][0], words[m][1], words[m][2], words[m][3]));
      }
    }
  }

  // This k warp's part of the product with a pass of the operand.
  template <class Operand>
  __device__ __forceinline__ void multiply(Operand& operand, int pass, Sums& sums) const {
    Sums chains[kChains] = {};
    // With three copies of the loop the kernels of any call would spill, and on sm_80 that of plain
    // calls with a single tile whose weights are split.
    constexpr bool kOneCopy = !kFast || (kSplits && kMTiles * kNTiles == 1);
    if (kOneCopy || chunk_steps_ < steps_) {
      multiply_by<false, false>(operand, pass, chains);
    } else if (steps_ >= kRegisterSteps) {
      multiply_by<true, true>(operand, pass, chains);
    } else {
      multiply_by<true, false>(operand, pass, chains);
    }
#pragma unroll
    for (int m = 0; m < kMTiles; ++m) {
#pragma unroll
      for (int n = 0; n < kNTiles; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          sums[m][n][i] = chains[0][m][n][i];
          if constexpr (kChains == 2) sums[m][n][i] += chains[1][m][n][i];
        }
      }
    }
  }

 private:
  __device__ __forceinline__ unsigned find_shared() const {
    const int fragments = threadIdx.x / 32 * max(0, steps_ - kRegisterSteps) * kMTiles;
    return fragments * kFragmentBytes + threadIdx.x % 32 * 16;
  }

  // kWhole: a chunk is a whole row, so there is one for each pass. kFull: weights fill the
  // registers. With both no branch keeps reads of one step from overlapping products of another.
  template <bool kWhole, bool kFull, class Operand>
  __device__ __forceinline__ void multiply_by(Operand& operand, int pass,
                                              Sums (&chains)[kChains]) const {
    const int row_stride = operand.row_stride();
    unsigned at = 0;
    int left = 0;  // steps of the chunk
    const auto go_on = [&] {
      if (!kWhole && left == 0) {
        at = operand.begin_chunk(pass);
        left = chunk_steps_;
      }
      left -= 2;
    };
    if constexpr (kWhole) at = operand.begin_chunk(pass);
#pragma unroll
    for (int s = 0; s < kRegisterSteps; s += 2) {
      if (kFull || s < steps_) {
        go_on();
        add(at, row_stride, chains, [&](int step, uint32_t (&a)[kMTiles][4]) {
#pragma unroll
          for (int m = 0; m < kMTiles; ++m) {
#pragma unroll
            for (int i = 0; i < 4; ++i) a[m][i] = registers_[s + step][m][i];
          }
        });
        at += 2 * kStepBytes;
      }
    }
    unsigned shared = shared_;
    [[maybe_unused]] constexpr int kUnroll = kFast && !kSplits ? 2 : 1;
#pragma unroll kUnroll
    for (int s = kRegisterSteps; s < steps_; s += 2) {
      go_on();
      add(at, row_stride, chains, [&](int step, uint32_t (&a)[kMTiles][4]) {
#pragma unroll
        for (int m = 0; m < kMTiles; ++m) {
          const auto words = load_shared<uint4>(shared + (step * kMTiles + m) * kFragmentBytes);
          a[m][0] = words.x, a[m][1] = words.y, a[m][2] = words.z, a[m][3] = words.w;
        }
      });
      at += 2 * kStepBytes;
      shared += 2 * kMTiles * kFragmentBytes;
    }
  }

  template <class WeightAt>
  __device__ __forceinline__ void copy_step(int slot, int s, bool is_aligned,
                                            const WeightAt& weight_at) const {
    constexpr int kPiece = 16 / sizeof(Bits), kPieces = kRowNumbers / kPiece;
#pragma unroll 1
    for (int i = threadIdx.x % 32; i < 32 * kMTiles; i += 32) {
      const int row = i / kPieces, first = i % kPieces * kPiece;
      const int to = slot + row * kRowBytes + first * static_cast<int>(sizeof(Bits));
      if (is_aligned) {
        if (const Bits* from = weight_at(first_step_ + s, row, first)) {
          copy_async_16(true, shared_address(dynamic_shared()) + to, from);
        } else {
          store_shared(shared_address(dynamic_shared()) + to, make_uint4(0, 0, 0, 0));
        }
      } else {
        for (int j = 0; j < kPiece; ++j) {
          const Bits* from = weight_at(first_step_ + s, row, first + j);
          reinterpret_cast<Bits*>(dynamic_shared() + to)[j] = from ? *from : Bits{};
        }
      }
    }
  }

  // Word i of a fragment has row lane / 4 + 8 (i % 2), and numbers along k from lane % 4
  // + 4 (i / 2) words on.
  __device__ __forceinline__ void read_step(int slot, uint32_t (&words)[kMTiles][4]) const {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int m = 0; m < kMTiles; ++m) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int of_tile = m * 16 + lane / 4 + 8 * (i % 2);
        Word weights;
#pragma unroll
        for (int j = 0; j < Element::kPerWord; ++j) {
          const int k = (lane % 4 + 4 * (i / 2)) * Element::kPerWord + j;
          const unsigned char* row = dynamic_shared() + slot + (kAlongK ? of_tile : k) * kRowBytes;
          weights[j] = reinterpret_cast<const Bits*>(row)[kAlongK ? k : of_tile];
        }
        words[m][i] = Element::word(weights);
      }
    }
  }

  // Two steps: one load_matrices brings both for 8 rows of the batch.
  template <class Fragments>
  __device__ __forceinline__ void add(unsigned row, int row_stride, Sums (&chains)[kChains],
                                      const Fragments& fragments) const {
    uint32_t a[2][kMTiles][4], b[kNTiles][4];
#pragma unroll
    for (int n = 0; n < kNTiles; ++n) load_matrices(b[n], row + n * 8 * row_stride);
#pragma unroll
    for (int step = 0; step < 2 && kFast; ++step) fragments(step, a[step]);
#pragma unroll
    for (int step = 0; step < 2; ++step) {
      if (!kFast) fragments(step, a[step]);
      typename Element::template Words<2> of_rows[kNTiles];
#pragma unroll
      for (int n = 0; n < kNTiles; ++n) {
        of_rows[n] = Element::words({b[n][2 * step], b[n][2 * step + 1]});
      }
#pragma unroll
      for (int m = 0; m < kMTiles; ++m) {
        const auto of_weights = Element::words(a[step][m]);
#pragma unroll
        for (int n = 0; n < kNTiles; ++n) {
          Element::multiply(chains[step % kChains][m][n], of_weights, of_rows[n]);
        }
      }
    }
  }

  const int steps_, chunk_steps_;
  int first_step_;   // along k, of this warp's
  unsigned shared_;  // this lane's words of the first fragment there
  uint32_t registers_[kRegisterSteps][kMTiles][4];
};

}  // namespace fastlstm::cuda
