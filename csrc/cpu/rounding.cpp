// Rounds sums in float32 to bfloat16, as the gradients of weights, which take long one by one:
// 4 MB for a layer of 512 units.
#include "kernels.h"
#include "schedule.h"

namespace fastlstm::cpu::FASTLSTM_ISA {

void to_bfloat16(const float* from, void* to, int64_t count, int num_threads) {
  constexpr int64_t kPerThread = 65536;  // numbers that take some 10 us
  constexpr int kMaxThreads = 64;        // more would wait for memory
  using V = Simd<float>;
  BFloat16* const rounded = static_cast<BFloat16*>(to);
  const int64_t vectors = count / V::kLanes, rest = count % V::kLanes;
  const int64_t most = lesser(kMaxThreads, lesser(num_threads, ceil_div(count, kPerThread)));
  Progress progress[kMaxThreads];
  run_team(progress, static_cast<int>(most), num_threads, [&](Team team) {
    const Range mine = share(vectors, team.thread(), team.size());
    for (int64_t i = mine.begin * V::kLanes; i < mine.end * V::kLanes; i += V::kLanes) {
      V::store(rounded + i, V::load(from + i, AllLanes{}), AllLanes{});
    }
  });
  const SomeLanes lanes{static_cast<int>(rest)};
  const int64_t done = vectors * V::kLanes;
  if (rest > 0) V::store(rounded + done, V::load(from + done, lanes), lanes);
}

}  // namespace fastlstm::cpu::FASTLSTM_ISA
