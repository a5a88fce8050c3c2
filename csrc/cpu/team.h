// The threads of one call, and the barrier between their steps.
#pragma once

#include <sched.h>

#include <cstdint>

#if defined(_OPENMP)
#include <omp.h>
#else
#include <thread>
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

#if !defined(_OPENMP)
// Runs `thread` and those after it. Each thread starts the next one: no list of them is needed,
// whose code, shared by all instruction sets, the linker could take from the wrong one.
template <class Body>
void run_from(Progress* progress, int thread, int size, const Body& body) {
  if (thread + 1 == size) return body(Team(progress, thread, size));
  std::thread next([&] { run_from(progress, thread + 1, size, body); });
  body(Team(progress, thread, size));
  next.join();
}
#endif

// Runs body(team) on up to `num_threads` threads; `progress` has room for as many. OpenMP shares
// its threads with torch. One thread stays outside it: a forked DataLoader worker must not enter
// the runtime that its parent has used. Without OpenMP every call starts threads of its own, some
// 20 us each: ThreadSanitizer follows these, but not OpenMP's.
template <class Body>
void run_team(Progress* progress, int num_threads, const Body& body) {
  if (num_threads <= 1) return body(Team(progress, 0, 1));
  for (int thread = 0; thread < num_threads; ++thread) progress[thread].steps = 0;
#if defined(_OPENMP)
#pragma omp parallel num_threads(num_threads)
  body(Team(progress, omp_get_thread_num(), omp_get_num_threads()));
#else
  run_from(progress, 0, num_threads, body);
#endif
}

}  // namespace
}  // namespace fastlstm::cpu
