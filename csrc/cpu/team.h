// The threads of one call, and the barrier between their steps.
#pragma once

#include <sched.h>

#include <cstdint>

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace fastlstm::cpu {
namespace {

// How many steps a thread has finished. A cache line each: a thread only ever writes its own.
struct alignas(64) Progress {
  int32_t steps;
};

class Team {
 public:
  Team(Progress* progress, int thread, int size)
      : progress_(progress), thread_(thread), size_(size) {}

  int thread() const { return thread_; }
  int size() const { return size_; }

  // One store and one load per other thread: 70 ns between two cores, where an OpenMP barrier
  // takes a microsecond. A step may be as short as 5 us. Spinning ends in sched_yield, because
  // with fewer cores than threads the one waited for may not be running.
  void barrier() {
    const int32_t mine = ++steps_;
    __atomic_store_n(&progress_[thread_].steps, mine, __ATOMIC_RELEASE);
    for (int other = 0; other < size_; ++other) {
      for (int spins = 0; __atomic_load_n(&progress_[other].steps, __ATOMIC_ACQUIRE) < mine;) {
        if (++spins > 1000) {
          sched_yield();
        } else {
          pause();
        }
      }
    }
  }

 private:
  static void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  Progress* progress_;
  int thread_, size_;
  int32_t steps_ = 0;
};

// Runs body(team) on up to `num_threads` threads; `progress` has room for as many. OpenMP shares
// its threads with torch. One thread stays outside it: a forked DataLoader worker must not enter
// the runtime that its parent has used.
template <class Body>
void run_team(Progress* progress, int num_threads, const Body& body) {
#if defined(_OPENMP)
  if (num_threads > 1) {
    for (int thread = 0; thread < num_threads; ++thread) progress[thread].steps = 0;
#pragma omp parallel num_threads(num_threads)
    body(Team(progress, omp_get_thread_num(), omp_get_num_threads()));
    return;
  }
#endif
  body(Team(progress, 0, 1));
}

}  // namespace
}  // namespace fastlstm::cpu
