// Tells whether weights are still those that were packed: 64 bits of all of them, at the speed of
// memory.
//
// One changed word of 64 bits changes the sum for certain; other changes go unseen as often as two
// random numbers of 64 bits are equal. It is no secret, and not made against who wants to deceive.
#include <cstring>
#include <vector>

#include "kernels.h"
#include "schedule.h"

namespace fastlstm::cpu::FASTLSTM_ISA {
namespace {

typedef uint64_t Words __attribute__((vector_size(kVectorBytes)));
constexpr int kChains = 4;  // side by side: the next word of a chain waits for the last product
constexpr int kPerChain = sizeof(Words) / 8, kWords = kChains * kPerChain;
constexpr int64_t kBlockWords = 4096;     // summed up by one thread
constexpr int64_t kBlocksPerThread = 32;  // 1 MB takes 20 us: two threads would not save 10

// Both are bijections of each argument, so that no single change is ever lost.
//
// A product alone carries differences upwards only: two changed signs of float64, 2^63 + 2^63,
// would cancel. The shift brings them down, and a sign never to where another sign or exponent is.
template <class Word>
FASTLSTM_INLINE Word mix(Word sum, Word word) {
  sum = (sum ^ word) * 0x9E3779B97F4A7C15u;
  return sum ^ (sum >> 29);
}

// Every bit of what comes out depends on every bit of what went in (Appleby's finalizer of
// MurmurHash3). Where sums meet, equal differences in both would cancel without it.
template <class Word>
FASTLSTM_INLINE Word finish(Word sum) {
  sum = (sum ^ (sum >> 33)) * 0xFF51AFD7ED558CCDu;
  sum = (sum ^ (sum >> 33)) * 0xC4CEB9FE1A85EC53u;
  return sum ^ (sum >> 33);
}

struct Block {
  const char* data;
  int64_t words;
};

uint64_t sum_of(const Block& block) {
  Words chains[kChains] = {}, next[kChains];
  for (int chain = 1; chain < kChains; ++chain) chains[chain] += chain;
  int64_t i = 0;
  for (; i + kWords <= block.words; i += kWords) {
    std::memcpy(next, block.data + i * 8, sizeof(next));
    for (int chain = 0; chain < kChains; ++chain) chains[chain] = mix(chains[chain], next[chain]);
  }
  uint64_t rest = block.words, word;
  for (; i < block.words; ++i) {
    std::memcpy(&word, block.data + i * 8, 8);
    rest = mix(rest, word);
  }
  for (Words& chain : chains) chain = finish(chain);
  uint64_t sum = finish(rest);
  for (i = 0; i < kWords; ++i) sum = mix(sum, chains[i / kPerChain][i % kPerChain]);
  return finish(sum);
}

}  // namespace

uint64_t checksum(const LstmShape& shape, const LstmWeight& weight_ih, const LstmWeight& weight_hh,
                  int num_threads) {
  const int64_t size = with_stored(shape.dtype, [](auto stored) { return sizeof(stored); });
  std::vector<Block> blocks;
  const auto add = [&](const LstmWeight& weight, int64_t columns) {
    const int64_t words = 4 * shape.H * columns * size / 8;  // whole ones: there are four gates
    for (int64_t group = 0; group < shape.G; ++group) {
      const char* data = static_cast<const char*>(weight.data) + group * weight.stride * size;
      for (int64_t i = 0; i < words; i += kBlockWords) {
        blocks.push_back({data + i * 8, lesser(kBlockWords, words - i)});
      }
    }
  };
  if (shape.I) add(weight_ih, shape.I);
  add(weight_hh, shape.H);

  const int64_t count = blocks.size();
  const int threads = static_cast<int>(lesser(num_threads, ceil_div(count, kBlocksPerThread)));
  std::vector<Progress> progress(threads);
  std::vector<uint64_t> sums(count);
  run_team(progress.data(), threads, [&](Team team) {
    const Range mine = share(count, team.thread(), team.size());
    for (int64_t i = mine.begin; i < mine.end; ++i) sums[i] = sum_of(blocks[i]);
  });
  uint64_t sum = count;
  for (const uint64_t block : sums) sum = mix(sum, block);
  return sum;
}

}  // namespace fastlstm::cpu::FASTLSTM_ISA
