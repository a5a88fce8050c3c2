// Independent tasks, shared out among the threads of a call.
//
// A thread that has finished its own tasks takes those of the others. Threads seldom run at the
// same speed: other programs and the system take time from one of them, and with equal shares the
// others wait for it at the next barrier, 4% of a backward pass with H = 256. Who does a task makes
// no difference to its result.
#pragma once

#include "team.h"

namespace fastlstm::cpu {
namespace {

class Tasks {
  // Each thread has a cache line of its own.
  struct alignas(64) Share {
    int64_t next, end;
  };

 public:
  static constexpr int64_t kBytesPerThread = sizeof(Share);

  // `memory` has room for kBytesPerThread bytes for each thread.
  explicit Tasks(void* memory) : shares_(static_cast<Share*>(memory)) {}

  // Gives this thread the tasks 0 to `count` - 1. A barrier must come before `run`, and another
  // one before the next call of this.
  void set_share(const Team& team, int64_t count) const { shares_[team.thread()] = {0, count}; }

  // Calls visit(owner, task) for this thread's tasks and then for those that other threads have not
  // begun.
  template <class Visit>
  FASTLSTM_INLINE void run(const Team& team, const Visit& visit) const {
    int owners = team.size();
#if defined(FASTLSTM_FORCE_PLAN)
    if (simulation.at_barrier) owners = 1, simulation.has_tasks = true;
#endif
    for (int i = 0; i < owners; ++i) {
      const int owner = (team.thread() + i) % team.size();
      Share& share = shares_[owner];
      // Reads first: of 64 threads each looks at the shares of 63 others, which are mostly done.
      while (__atomic_load_n(&share.next, __ATOMIC_RELAXED) < share.end) {
        const int64_t task = __atomic_fetch_add(&share.next, 1, __ATOMIC_RELAXED);
        if (task >= share.end) break;
        visit(owner, task);
      }
    }
  }

 private:
  Share* const shares_;
};

}  // namespace
}  // namespace fastlstm::cpu
