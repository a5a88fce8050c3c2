// The threads of one call, and the barrier between their steps.
#pragma once

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#else
#include <sched.h>
#endif

#include <climits>
#include <cstdint>
#include <thread>

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "kernels.h"

namespace fastlstm::cpu {
namespace {

// How many steps a thread has finished, and how many others sleep until it has finished one more.
// A cache line each: a thread only ever writes its own steps.
struct alignas(64) Progress {
  int32_t steps, sleepers;
};

class Team {
 public:
  Team(Progress* progress, int thread, int size)
      : progress_(progress), thread_(thread), size_(size) {}

  int thread() const { return thread_; }
  int size() const { return size_; }

  // One exchange and one load per other thread, where an OpenMP barrier takes a microsecond: a step
  // may be as short as that.
  void barrier() {
    const int32_t mine = ++steps_;
    if (size_ == 1) return;
    // In one order for all threads, as the count of sleepers is: either this thread sees who
    // sleeps, or who is about to sleep sees this step.
    __atomic_exchange_n(&progress_[thread_].steps, mine, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&progress_[thread_].sleepers, __ATOMIC_SEQ_CST)) wake(progress_[thread_]);
    for (int other = 0; other < size_; ++other) {
      if (other != thread_) wait_for(progress_[other], mine);
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

  // Whoever has spun for some 30 us waits for a thread that is not running. To spin on, or to
  // yield, would use up this thread's own share of a busy core: a short call became 50 times
  // slower. Who sleeps is let in again at once.
  static void wait_for(Progress& other, int32_t step) {
    for (int spins = 0; spins < 2000; ++spins) {
      if (__atomic_load_n(&other.steps, __ATOMIC_ACQUIRE) >= step) return;
      pause();
    }
    __atomic_fetch_add(&other.sleepers, 1, __ATOMIC_SEQ_CST);
    for (int32_t now; (now = __atomic_load_n(&other.steps, __ATOMIC_SEQ_CST)) < step;) {
      sleep_while(other, now);
    }
    __atomic_fetch_sub(&other.sleepers, 1, __ATOMIC_SEQ_CST);
  }

#if defined(__linux__)
  static void sleep_while(Progress& other, int32_t steps) {
    syscall(SYS_futex, &other.steps, FUTEX_WAIT_PRIVATE, steps, nullptr, nullptr, 0);
  }
  static void wake(Progress& mine) {
    syscall(SYS_futex, &mine.steps, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
  }
#else
  static void sleep_while(Progress&, int32_t) { sched_yield(); }
  static void wake(Progress&) {}
#endif

  Progress* progress_;
  int thread_, size_;
  int32_t steps_ = 0;
};

// Runs `thread` and those after it. Each thread starts the next one: no list of them is needed,
// whose code, shared by all instruction sets, the linker could take from the wrong one.
template <class Body>
void run_from(Progress* progress, int thread, int size, const Body& body) {
  if (thread + 1 == size) return body(Team(progress, thread, size));
  std::thread next([&] { run_from(progress, thread + 1, size, body); });
  body(Team(progress, thread, size));
  next.join();
}

// Runs body(team) on up to `num_threads` threads; `progress` has room for as many. OpenMP shares
// its threads with torch. One thread stays outside it.
//
// A forked process has none of its parent's threads, but OpenMP waits for them there for ever. So
// every call starts threads of its own in it, some 20 us each, and so it does in a build without
// OpenMP: ThreadSanitizer follows these threads, but not OpenMP's.
template <class Body>
void run_team(Progress* progress, int num_threads, const Body& body) {
  if (num_threads <= 1) return body(Team(progress, 0, 1));
  for (int thread = 0; thread < num_threads; ++thread) progress[thread] = {};
#if defined(_OPENMP)
  if (!is_forked) {
#pragma omp parallel num_threads(num_threads)
    body(Team(progress, omp_get_thread_num(), omp_get_num_threads()));
    return;
  }
#endif
  run_from(progress, 0, num_threads, body);
}

}  // namespace
}  // namespace fastlstm::cpu
