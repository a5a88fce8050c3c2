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

template <class Element, int kMTiles, int kNTiles>
class Product {
  static constexpr int kRegisterSteps = register_steps(Element::kProducts, kMTiles);
  using Word = typename Element::Bits[Element::kPerWord];
  // A product that adds to the one before waits 33 cycles, the time of four products. Another warp
  // and other tiles fill that time, unless there is one tile only.
  static constexpr int kChains = kMTiles * kNTiles == 1 ? 2 : 1;

 public:
  static constexpr int kStepNumbers = 8 * Element::kPerWord;  // along k
  // d of each tile, in the layout of mma.
  using Sums = float[kMTiles][kNTiles][4];

  __device__ __forceinline__ explicit Product(const Recurrence& r) : steps_(r.steps) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int shared_steps = max(0, steps_ - kRegisterSteps);
    shared_ =
        reinterpret_cast<uint4*>(dynamic_shared()) + warp * shared_steps * kMTiles * 32 + lane;
    first_step_ = warp % r.k_warps * steps_;
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
        shared_[((s - kRegisterSteps) * kMTiles + m) * 32] =
            make_uint4(words[m][0], words[m][1], words[m][2], words[m][3]);
      }
    }
  }

  // This k warp's part of the product with a pass of the operand.
  __device__ __forceinline__ void multiply(Operand& operand, Sums& sums) const {
    Sums chains[kChains] = {};
#pragma unroll
    for (int s = 0; s < kRegisterSteps; s += 2) {
      if (s < steps_) {
        add(operand, chains, [&](int step, uint32_t (&a)[kMTiles][4]) {
#pragma unroll
          for (int m = 0; m < kMTiles; ++m) {
#pragma unroll
            for (int i = 0; i < 4; ++i) a[m][i] = registers_[s + step][m][i];
          }
        });
      }
    }
    const uint4* shared = shared_;
    for (int s = kRegisterSteps; s < steps_; s += 2) {
      add(operand, chains, [&](int step, uint32_t (&a)[kMTiles][4]) {
#pragma unroll
        for (int m = 0; m < kMTiles; ++m) {
          const uint4 words = shared[(step * kMTiles + m) * 32];
          a[m][0] = words.x, a[m][1] = words.y, a[m][2] = words.z, a[m][3] = words.w;
        }
      });
      shared += 2 * kMTiles * 32;
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
  __device__ __forceinline__ void add(Operand& operand, Sums (&chains)[kChains],
                                      const Fragments& fragments) const {
    const unsigned char* row = operand.next();
    uint32_t b[kNTiles][4];
#pragma unroll
    for (int n = 0; n < kNTiles; ++n) load_matrices(b[n], row + n * 8 * operand.row_stride());
#pragma unroll
    for (int step = 0; step < 2; ++step) {
      uint32_t a[kMTiles][4];
      fragments(step, a);
      typename Element::template Words<2> of_rows[kNTiles];
#pragma unroll
      for (int n = 0; n < kNTiles; ++n) {
        of_rows[n] = Element::words({b[n][2 * step], b[n][2 * step + 1]});
      }
#pragma unroll
      for (int m = 0; m < kMTiles; ++m) {
        const auto of_weights = Element::words(a[m]);
#pragma unroll
        for (int n = 0; n < kNTiles; ++n) {
          Element::multiply(chains[step % kChains][m][n], of_weights, of_rows[n]);
        }
      }
    }
  }

  const int steps_;
  int first_step_;  // along k, of this warp's
  uint4* shared_;   // this lane's words of the first fragment there
  uint32_t registers_[kRegisterSteps][kMTiles][4];
};

}  // namespace fastlstm::cuda
