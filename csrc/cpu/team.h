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

#include "kernels.h"

#if defined(FASTLSTM_OPENMP)
// GNU's and LLVM's OpenMP runtimes have these. A pragma would call functions of one of them only.
extern "C" {
void GOMP_parallel(void (*body)(void*), void* data, unsigned num_threads, unsigned flags);
int omp_get_thread_num();
int omp_get_num_threads();
}
#endif

namespace fastlstm::cpu {
namespace {

// `steps`: how many steps a thread has finished. `sleepers`: how many other threads sleep until it
// finishes the next one. Each thread has a cache line of its own, because it writes its own steps
// only.
struct alignas(64) Progress {
  int32_t steps, sleepers;
};

class Team {
 public:
  Team(Progress* progress, int thread, int size)
      : progress_(progress), thread_(thread), size_(size) {}

  int thread() const { return thread_; }
  int size() const { return size_; }

  // Waits until all threads have called this as often. It costs one exchange, and one load for each
  // other thread. An OpenMP barrier takes 1 us, which is as long as a short step.
  void barrier() {
    const int32_t mine = ++steps_;
    if (size_ == 1) return;
    // Sequentially consistent, as are the accesses of `sleepers`: either this thread sees the
    // sleeper, or the thread that is about to sleep sees the new step. No wake-up is lost.
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

  // After about 30 us of spinning the other thread is probably not scheduled. Then this thread
  // sleeps on a futex: spinning or yielding would use up its own share of a busy core, which made
  // a short call 50 times slower. The kernel schedules a woken thread at once.
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

// Runs body(team) on threads `thread` to `size` - 1. Each thread starts the next one. A std::vector
// of threads would do too, but its code is a template that all instruction sets instantiate, and
// the linker could keep a copy that this machine cannot run.
template <class Body>
void run_from(Progress* progress, int thread, int size, const Body& body) {
  if (thread + 1 == size) return body(Team(progress, thread, size));
  std::thread next([&] { run_from(progress, thread + 1, size, body); });
  body(Team(progress, thread, size));
  next.join();
}

// Runs body(team) on up to `num_threads` threads; `progress` has room for as many. The threads are
// OpenMP's, which torch uses too. A single thread runs the body directly.
//
// In a forked process OpenMP would wait forever for the parent's threads, which do not exist there.
// A call in such a process starts its own threads, about 20 us each. So does a build without
// OpenMP, for ThreadSanitizer, which does not understand OpenMP's barriers.
template <class Body>
void run_team(Progress* progress, int num_threads, const Body& body) {
  if (num_threads <= 1) return body(Team(progress, 0, 1));
  for (int thread = 0; thread < num_threads; ++thread) progress[thread] = {};
#if defined(FASTLSTM_OPENMP)
  if (!is_forked) {
    const auto run = [&] { body(Team(progress, omp_get_thread_num(), omp_get_num_threads())); };
    const auto call = [](void* run_) { (*static_cast<decltype(run)*>(run_))(); };
    GOMP_parallel(call, const_cast<void*>(static_cast<const void*>(&run)),
                  static_cast<unsigned>(num_threads), 0);
    return;
  }
#endif
  run_from(progress, 0, num_threads, body);
}

}  // namespace
}  // namespace fastlstm::cpu
