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
// to read weights from shared memory ahead.
template <class Element, int kMTiles, int kNTiles, bool kFast>
class Product {
  static constexpr int kRegisterSteps = register_steps(Element::kProducts, kMTiles);
  using Word = typename Element::Bits[Element::kPerWord];
  // A product that adds to the one before waits 33 cycles, the time of four products. Another warp
  // and other tiles fill that time, unless there are one or two tiles only.
  static constexpr int kChains = kMTiles * kNTiles <= (kFast ? 2 : 1) ? 2 : 1;

 public:
  static constexpr int kStepNumbers = 8 * Element::kPerWord;  // along k
  // d of each tile, in the layout of mma.
  using Sums = float[kMTiles][kNTiles][4];

  __device__ __forceinline__ explicit Product(const Recurrence& r)
      : steps_(r.steps), chunk_steps_(r.chunk_steps) {
    const int warp = threadIdx.x / 32;
    shared_ = shared_memory() + find_shared();
    first_step_ = (warp & (r.k_warps - 1)) * steps_;
  }

  // weight_at(tile, row, step, k) is the weight in row 0 to 15 of one of this warp's tiles, at
  // index k within a step along k; steps are numbered through all k warps.
  template <class WeightAt>
  __device__ __forceinline__ void load(const WeightAt& weight_at) {
#pragma unroll
    for (int s = 0; s < kRegisterSteps; ++s) {
      if (s < steps_) load_step(weight_at, s, registers_[s]);
    }
    for (int s = kRegisterSteps; s < steps_; ++s) {
      uint32_t words[kMTiles][4];
      load_step(weight_at, s, words);
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
    if (chunk_steps_ < steps_) {
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
    [[maybe_unused]] constexpr int kUnroll = kFast ? 2 : 1;
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

  // Word i of a fragment has row lane / 4 + 8 (i % 2), and numbers along k from lane % 4
  // + 4 (i / 2) words on.
  template <class WeightAt>
  __device__ __forceinline__ void load_step(const WeightAt& weight_at, int s,
                                            uint32_t (&words)[kMTiles][4]) const {
    const unsigned lane = threadIdx.x % 32;
#pragma unroll
    for (int m = 0; m < kMTiles; ++m) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const unsigned k = (lane % 4 + 4 * (i / 2)) * Element::kPerWord;
        Word weights;
#pragma unroll
        for (int j = 0; j < Element::kPerWord; ++j) {
          weights[j] = weight_at(m, lane / 4 + 8 * (i % 2), first_step_ + s, k + j);
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
