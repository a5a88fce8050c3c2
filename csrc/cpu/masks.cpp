// Draws masks and applies them: a counter-based generator, so that any part of a mask can be drawn
// by any thread.
//
// Word n of a mask is the n-th number of SplitMix64 from the mask's seed (Steele, Lea and Flood,
// 2014, "Fast splittable pseudorandom number generators"): a bijection of 64 bits of seed + (n + 1)
// times an odd constant. A word has the 16 bits of four numbers of the mask.
#include "masks.h"

#include <cstring>

#include "kernels.h"
#include "schedule.h"

namespace fastlstm::cpu::FASTLSTM_ISA {
namespace {

constexpr int kMaxThreads = 64;          // more would wait for memory
constexpr int kPerWord = 4;              // numbers
constexpr int kWords = 64;               // drawn at once, in loops that the compiler vectorises
constexpr int64_t kPerThread = 1 << 16;  // numbers; a guess that was not measured

constexpr uint64_t kOdd = 0x9E3779B97F4A7C15u;

// Its multiples. Without AVX-512 a vector has no instruction for a product of 64 bits, and takes
// ten for it: a third of the time of a word.
struct Multiples {
  uint64_t of[kWords] = {};
  constexpr Multiples() {
    for (int i = 0; i < kWords; ++i) of[i] = static_cast<uint64_t>(i + 1) * kOdd;
  }
};
constexpr Multiples kMultiples;

// The words from number `first` on.
FASTLSTM_INLINE void draw_words(uint64_t seed, int64_t first, uint64_t* words) {
  const uint64_t before = seed + static_cast<uint64_t>(first) * kOdd;
  for (int i = 0; i < kWords; ++i) {
    uint64_t word = before + kMultiples.of[i];
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9u;
    word = (word ^ (word >> 27)) * 0x94D049BB133111EBu;
    words[i] = word ^ (word >> 31);
  }
}

// Draws some blocks of a mask. All values are arguments: behind a reference they might be what the
// loops write to, and the loops would be compiled without vectors, twice as slow.
template <class Item>
FASTLSTM_INLINE void draw(Range blocks, uint64_t seed, int32_t below, Item dropped, Item kept,
                          int64_t count, Item* to) {
  constexpr int64_t kBlock = kWords * kPerWord;
  for (int64_t block = blocks.begin; block < blocks.end; ++block) {
    uint64_t words[kWords];
    uint16_t numbers[kBlock];
    draw_words(seed, block * kWords, words);
    std::memcpy(numbers, words, sizeof(words));
    const int64_t first = block * kBlock;
    if (first + kBlock <= count) {
      for (int i = 0; i < kBlock; ++i) to[first + i] = numbers[i] < below ? dropped : kept;
    } else {
      for (int64_t i = 0; i < count - first; ++i)
        to[first + i] = numbers[i] < below ? dropped : kept;
    }
  }
}

// Runs visit(range) for the parts of [0, parts) of a mask of `count` numbers.
template <class Visit>
void share_out(int64_t parts, int64_t count, int num_threads, const Visit& visit) {
  const int64_t most = lesser(kMaxThreads, lesser(num_threads, ceil_div(count, kPerThread)));
  Progress progress[kMaxThreads];
  run_team(progress, static_cast<int>(most), num_threads,
           [&](Team team) { visit(share(parts, team.thread(), team.size())); });
}

template <class Item>
void draw(const Mask& mask, Item dropped, Item kept, int num_threads) {
  const auto below = static_cast<int32_t>(__builtin_lrint(mask.p * 65536));
  share_out(ceil_div(mask.count, kWords * kPerWord), mask.count, num_threads, [&](Range blocks) {
    draw(blocks, mask.seed, below, dropped, kept, mask.count, static_cast<Item*>(mask.to));
  });
}

template <class S>
void apply(const MaskProduct& product, int num_threads) {
  using V = Simd<Sum<S>>;
  const auto *const mask = static_cast<const S*>(product.mask), *const from = static_cast<const S*>(
                                                                    product.from);
  auto* const to = static_cast<S*>(product.to);
  share_out(ceil_div(product.count, kLanes<S>), product.count, num_threads, [&](Range vectors) {
    for (int64_t i = vectors.begin * kLanes<S>; i < vectors.end * kLanes<S>; i += kLanes<S>) {
      with_lanes<kLanes<S>>(i, product.count, [&](auto lanes) {
        V::store(to + i, V::load(mask + i, lanes) * V::load(from + i, lanes), lanes);
      });
    }
  });
}

}  // namespace

void draw_mask(const Mask& mask, int num_threads) {
  const auto dropped = static_cast<float>(mask.dropped), kept = static_cast<float>(mask.kept);
  if (mask.dtype == DType::float64) return draw(mask, mask.dropped, mask.kept, num_threads);
  if (mask.dtype == DType::float32) return draw(mask, dropped, kept, num_threads);
  using V = Simd<float>;
  BFloat16 rounded[2];
  const SomeLanes one{1};
  V::store(rounded, V::load(&dropped, one), one);
  V::store(rounded + 1, V::load(&kept, one), one);
  draw(mask, rounded[0].bits, rounded[1].bits, num_threads);
}

void apply_mask(const MaskProduct& product, int num_threads) {
  if (product.dtype == DType::float64) return apply<double>(product, num_threads);
  if (product.dtype == DType::float32) return apply<float>(product, num_threads);
  apply<BFloat16>(product, num_threads);
}

}  // namespace fastlstm::cpu::FASTLSTM_ISA
