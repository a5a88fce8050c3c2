// Draws masks: a counter-based generator, so that any part of a mask can be drawn by any thread.
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

constexpr int64_t kBlock = kWords * kPerWord;

FASTLSTM_INLINE void draw_numbers(uint64_t seed, int64_t block, uint16_t* numbers) {
  uint64_t words[kWords];
  draw_words(seed, block * kWords, words);
  std::memcpy(numbers, words, sizeof(words));
}

// Draws some blocks of a mask. All values are arguments, here and below: behind a reference they
// might be what the loops write to, and the loops would be compiled without vectors, twice as slow.
template <class Item>
FASTLSTM_INLINE void draw(Range blocks, uint64_t seed, int32_t below, Item dropped, Item kept,
                          int64_t count, Item* to) {
  for (int64_t block = blocks.begin; block < blocks.end; ++block) {
    uint16_t numbers[kBlock];
    draw_numbers(seed, block, numbers);
    const int64_t first = block * kBlock;
    if (first + kBlock <= count) {
      for (int i = 0; i < kBlock; ++i) to[first + i] = numbers[i] < below ? dropped : kept;
    } else {
      for (int64_t i = 0; i < count - first; ++i)
        to[first + i] = numbers[i] < below ? dropped : kept;
    }
  }
}

// Numbers below it happen with probability p.
int32_t threshold(double p) { return static_cast<int32_t>(__builtin_lrint(p * 65536)); }

// Runs visit(blocks) for each thread's share of the blocks of `count` numbers.
template <class Visit>
void for_each_share(int64_t count, int num_threads, const Visit& visit) {
  const int64_t most = lesser(kMaxThreads, lesser(num_threads, ceil_div(count, kPerThread)));
  Progress progress[kMaxThreads];
  run_team(progress, static_cast<int>(most), num_threads,
           [&](Team team) { visit(share(ceil_div(count, kBlock), team.thread(), team.size())); });
}

template <class Item>
void draw(const Mask& mask, Item dropped, Item kept, int num_threads) {
  for_each_share(mask.count, num_threads, [&](Range blocks) {
    draw(blocks, mask.seed, threshold(mask.p), dropped, kept, mask.count,
         static_cast<Item*>(mask.to));
  });
}

// A number rounded to type S.
template <class S>
S rounded(double number) {
  using V = Simd<Sum<S>>;
  const auto wide = static_cast<Sum<S>>(number);
  S stored;
  V::store(&stored, V::load(&wide, SomeLanes{1}), SomeLanes{1});
  return stored;
}

FASTLSTM_INLINE void keep(const uint16_t* numbers, int32_t below, uint8_t* is_kept) {
  for (int i = 0; i < kBlock; ++i) is_kept[i] = numbers[i] >= below;
}

template <class Number>
FASTLSTM_INLINE void set_factors(const uint8_t* is_kept, Number scale, Number* factors) {
  for (int i = 0; i < kBlock; ++i) factors[i] = is_kept[i] ? scale : 0;
}

template <class S>
void drop(const WeightDropout& call, bool draws, int num_threads) {
  using V = Simd<Sum<S>>;
  for_each_share(call.count, num_threads, [&](Range blocks) {
    const S stored = rounded<S>(call.p < 1 ? 1 / (1 - call.p) : 0);
    const Sum<S> scale = V::load(&stored, SomeLanes{1})[0];
    for (int64_t block = blocks.begin; block < blocks.end; ++block) {
      const int64_t first = block * kBlock, count = lesser(kBlock, call.count - first);
      const S* const from = static_cast<const S*>(call.from) + first;
      S* const to = static_cast<S*>(call.to) + first;
      uint8_t is_kept[kBlock] = {};
      if (draws) {
        uint16_t numbers[kBlock];
        draw_numbers(call.seed, block, numbers);
        keep(numbers, threshold(call.p), is_kept);
        std::memcpy(call.is_kept + first, is_kept, count);
      } else {
        std::memcpy(is_kept, call.is_kept + first, count);
      }
      Sum<S> factors[kBlock];
      set_factors(is_kept, scale, factors);
      for (int64_t i = 0; i < count; i += kLanes<S>) {
        with_lanes<kLanes<S>>(i, count, [&](auto lanes) {
          V::store(to + i, V::load(from + i, lanes) * V::load(factors + i, AllLanes{}), lanes);
        });
      }
    }
  });
}

void drop(const WeightDropout& call, bool draws, int num_threads) {
  if (call.dtype == DType::float64) return drop<double>(call, draws, num_threads);
  if (call.dtype == DType::float32) return drop<float>(call, draws, num_threads);
  drop<BFloat16>(call, draws, num_threads);
}

}  // namespace

void draw_mask(const Mask& mask, int num_threads) {
  if (mask.dtype == DType::float64) return draw(mask, mask.dropped, mask.kept, num_threads);
  if (mask.dtype == DType::float32) {
    return draw(mask, rounded<float>(mask.dropped), rounded<float>(mask.kept), num_threads);
  }
  draw(mask, rounded<BFloat16>(mask.dropped).bits, rounded<BFloat16>(mask.kept).bits, num_threads);
}

void drop_weights(const WeightDropout& call, int num_threads) { drop(call, true, num_threads); }
void drop_again(const WeightDropout& call, int num_threads) { drop(call, false, num_threads); }

}  // namespace fastlstm::cpu::FASTLSTM_ISA
