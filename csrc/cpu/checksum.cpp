// A 64-bit checksum of the weights, which tells whether they are still those that were packed. It
// reads them at the speed of memory.
//
// A change of a single 64-bit word always changes the checksum; any other change is missed with
// probability 2^-64. It is not a cryptographic hash.
#include <cstring>

#include "kernels.h"
#include "schedule.h"

namespace fastlstm::cpu::FASTLSTM_ISA {
namespace {

typedef uint64_t Words __attribute__((vector_size(kVectorBytes)));
constexpr int kChains = 4;  // independent sums, to hide the latency of the multiplication
constexpr int kPerChain = sizeof(Words) / 8, kWords = kChains * kPerChain;
constexpr int64_t kBlockWords = 4096;     // summed up by one thread
constexpr int kMaxThreads = 64;           // more would wait for memory
constexpr int64_t kBlocksPerThread = 32;  // 1 MB takes 20 us: two threads would not save 10

// mix and finish are bijections of each argument, so a single change is never lost.
//
// A multiplication moves differences to higher bits only, so two changed signs of float64, 2^63 +
// 2^63, would cancel. The shift moves them down, and never onto another sign or exponent.
template <class Word>
FASTLSTM_INLINE Word mix(Word sum, Word word) {
  sum = (sum ^ word) * 0x9E3779B97F4A7C15u;
  return sum ^ (sum >> 29);
}

// Makes every bit of the result depend on every bit of the argument (the finalizer of MurmurHash3).
// Without it, equal differences in two sums would cancel when the sums are combined.
template <class Word>
FASTLSTM_INLINE Word finish(Word sum) {
  sum = (sum ^ (sum >> 33)) * 0xFF51AFD7ED558CCDu;
  sum = (sum ^ (sum >> 33)) * 0xC4CEB9FE1A85EC53u;
  return sum ^ (sum >> 33);
}

uint64_t sum_of(const char* data, int64_t words) {
  Words chains[kChains] = {}, next[kChains];
  for (int chain = 1; chain < kChains; ++chain) chains[chain] += chain;
  int64_t i = 0;
  for (; i + kWords <= words; i += kWords) {
    std::memcpy(next, data + i * 8, sizeof(next));
    for (int chain = 0; chain < kChains; ++chain) chains[chain] = mix(chains[chain], next[chain]);
  }
  uint64_t rest = words, word;
  for (; i < words; ++i) {
    std::memcpy(&word, data + i * 8, 8);
    rest = mix(rest, word);
  }
  for (Words& chain : chains) chain = finish(chain);
  uint64_t sum = finish(rest);
  for (i = 0; i < kWords; ++i) sum = mix(sum, chains[i / kPerChain][i % kPerChain]);
  return finish(sum);
}

}  // namespace

// Uses no container of the standard library: all instruction sets instantiate its templates, and
// the linker could keep a copy that this machine cannot run.
uint64_t checksum(const LstmShape& shape, const LstmWeight& weight_ih, const LstmWeight& weight_hh,
                  int num_threads) {
  const int64_t size = with_stored(shape, [](auto stored) { return sizeof(stored); });
  const auto words_of_a_group = [&](int64_t columns) {
    return 4 * shape.H * columns * size / 8;  // whole ones: there are four gates
  };
  const int64_t ih = words_of_a_group(shape.I), hh = words_of_a_group(shape.P ? shape.P : shape.H);
  const int64_t ih_blocks = ceil_div(ih, kBlockWords), hh_blocks = ceil_div(hh, kBlockWords);
  const int64_t count = shape.G * (ih_blocks + hh_blocks);
  const auto sum_of_block = [&](int64_t i) {
    const int64_t group = i / (ih_blocks + hh_blocks), block = i % (ih_blocks + hh_blocks);
    const bool is_ih = block < ih_blocks;
    const LstmWeight& weight = is_ih ? weight_ih : weight_hh;
    const int64_t first = (is_ih ? block : block - ih_blocks) * kBlockWords;
    const char* data = static_cast<const char*>(weight.data) + group * weight.stride * size;
    return sum_of(data + first * 8, lesser(kBlockWords, (is_ih ? ih : hh) - first));
  };

  const int64_t worth = ceil_div(count, kBlocksPerThread);
  const int threads = static_cast<int>(lesser(kMaxThreads, lesser(num_threads, worth)));
  Progress progress[kMaxThreads];
  uint64_t sum = count;
  run_team(progress, threads, num_threads, [&](Team team) {
    const Range mine = share(count, team.thread(), team.size());
    uint64_t part = 0;  // each block is mixed with its number, so the order of addition is free
    for (int64_t i = mine.begin; i < mine.end; ++i)
      part += finish(mix(sum_of_block(i), uint64_t(i)));
    __atomic_fetch_add(&sum, part, __ATOMIC_RELAXED);
  });
  return sum;
}

}  // namespace fastlstm::cpu::FASTLSTM_ISA
