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
#include "simd.h"

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

// `steps`: how many rounds of barriers a thread has begun. `sleepers`: how many other threads sleep
// until it begins the next one. Each is a cache line of its own, because its thread alone writes
// the steps.
struct alignas(64) Line {
  int32_t steps, sleepers;
};
// A thread's progress in the barriers of the whole team, and in those of its part of the team.
struct Progress {
  Line in_team, in_part;
};

class Team {
 public:
  Team(Progress* progress, int thread, int size)
      : Team(progress, progress ? &progress->in_team : nullptr, thread, size) {}

  int thread() const { return thread_; }
  int size() const { return size_; }

  // The threads from `first` to first + size - 1 of this team, to which this thread belongs. Their
  // barriers do not involve the others. A thread is in the same part for a whole call.
  Team part(int first, int size) const {
    return Team(nullptr, progress_ ? &progress_[first].in_part : nullptr, thread_ - first, size);
  }

  // Waits until all threads have called this as often. It goes in rounds: in round k a thread waits
  // for three others, 4^k, 2 * 4^k and 3 * 4^k places before it, each of which has by then heard of
  // the 4^k - 1 threads before itself. So 2 to 4 threads wait for each other directly, at the price
  // of one exchange and one load for each other thread, and 64 threads take 3 rounds of 3 loads
  // instead of 63 loads each. An OpenMP barrier takes 1 us, which is as long as a short step.
  FASTLSTM_INLINE void barrier() {
    if (size_ == 1) return;
#if defined(FASTLSTM_FORCE_PLAN)
    if (simulation.at_barrier) return simulation.at_barrier(size_, progress_ == nullptr);
#endif
    if (size_ == 2) return wait_for(line_of(1 - thread_), begin_round());  // 6 ns less
    int32_t mine = 0;
    const auto begin = [&]() __attribute__((always_inline)) { mine = begin_round(); };
    const auto wait = [&](int other)
                          __attribute__((always_inline)) { wait_for(line_of(other), mine); };
    for_each_wait(thread_, size_, begin, wait);
  }

  // Calls begin() at the start of each round of a barrier, and wait(other) for each thread that
  // `thread` waits for in it.
  template <class Begin, class Wait>
  static FASTLSTM_INLINE void for_each_wait(int thread, int size, const Begin& begin,
                                            const Wait& wait) {
    for (int distance = 1; distance < size; distance *= kFanIn) {
      begin();
      for (int i = 1, other = thread; i < kFanIn && i * distance < size; ++i) {
        other = other < distance ? other - distance + size : other - distance;
        wait(other);
      }
    }
  }

 private:
  static constexpr int kFanIn = 4;
  // About 30 us, and less than one.
  static constexpr int kMostSpins = 2000, kFewestSpins = 8;

  // It goes on counting where an earlier object of the same thread stopped.
  Team(Progress* progress, Line* lines, int thread, int size)
      : progress_(progress), lines_(lines), thread_(thread), size_(size) {
    if (size_ == 1) return;
    line_ = &line_of(thread_);
    steps_ = line_->steps;
  }

  Line& line_of(int thread) const { return lines_[thread * (sizeof(Progress) / sizeof(Line))]; }

  // Sequentially consistent, as are the accesses of `sleepers`: either this thread sees the
  // sleeper, or the thread that is about to sleep sees the new step. No wake-up is lost.
  FASTLSTM_INLINE int32_t begin_round() {
    const int32_t mine = ++steps_;
    __atomic_exchange_n(&line_->steps, mine, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&line_->sleepers, __ATOMIC_SEQ_CST)) wake(*line_);
    return mine;
  }

  static void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  // After about 30 us of spinning the other thread is probably not scheduled. Then this thread
  // sleeps on a futex: spinning or yielding would use up its own share of a busy core, which made
  // a short call 50 times slower. The kernel schedules a woken thread at once. The next waits spin
  // for less, until a spin succeeds: of 64 threads on two cores most wait for threads that are not
  // scheduled. (This object stays in registers, because no function gets its address.)
  FASTLSTM_INLINE void wait_for(Line& other, int32_t step) {
    const int most = most_spins_;
    for (int spins = 0; spins < most; ++spins) {
      if (__atomic_load_n(&other.steps, __ATOMIC_ACQUIRE) >= step) {
        if (spins && most < kMostSpins) most_spins_ = 2 * most;
        return;
      }
      pause();
    }
    most_spins_ = most / 4 > kFewestSpins ? most / 4 : kFewestSpins;
    sleep_until(other, step);
  }
  static __attribute__((noinline)) void sleep_until(Line& other, int32_t step) {
    __atomic_fetch_add(&other.sleepers, 1, __ATOMIC_SEQ_CST);
    for (int32_t now; (now = __atomic_load_n(&other.steps, __ATOMIC_SEQ_CST)) < step;) {
      sleep_while(other, now);
    }
    __atomic_fetch_sub(&other.sleepers, 1, __ATOMIC_SEQ_CST);
  }

#if defined(__linux__)
  static void sleep_while(Line& other, int32_t steps) {
    syscall(SYS_futex, &other.steps, FUTEX_WAIT_PRIVATE, steps, nullptr, nullptr, 0);
  }
  static void wake(Line& mine) {
    syscall(SYS_futex, &mine.steps, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
  }
#else
  static void sleep_while(Line&, int32_t) { sched_yield(); }
  static void wake(Line&) {}
#endif

  Progress* progress_;    // of the whole team; null in a part
  Line* lines_;           // of the threads of this object, a Progress apart
  Line* line_ = nullptr;  // of this thread
  int thread_, size_;
  int most_spins_ = kMostSpins;
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
// OpenMP is asked for `most` threads, as many as torch asks it for, and those beyond num_threads
// have nothing to do: GNU's runtime ends threads that a call does not use, and starts them again
// for the next one.
//
// In a forked process OpenMP would wait forever for the parent's threads, which do not exist there.
// A call in such a process starts its own threads, about 20 us each. So does a build without
// OpenMP, for ThreadSanitizer, which does not understand OpenMP's barriers.
template <class Body>
void run_team(Progress* progress, int num_threads, int most, const Body& body) {
#if defined(FASTLSTM_FORCE_PLAN)
  if (simulation.at_barrier) {
    simulation.threads = num_threads;
    if (simulation.thread < num_threads) body(Team(progress, simulation.thread, num_threads));
    return;
  }
#endif
  if (num_threads <= 1) return body(Team(progress, 0, 1));
  for (int thread = 0; thread < num_threads; ++thread) progress[thread] = {};
#if defined(FASTLSTM_OPENMP)
  if (!is_forked) {
    const auto run = [&] {
      const int thread = omp_get_thread_num(), granted = omp_get_num_threads();
      const int size = granted < num_threads ? granted : num_threads;
      if (thread < size) body(Team(progress, thread, size));
    };
    const auto call = [](void* run_) { (*static_cast<decltype(run)*>(run_))(); };
    GOMP_parallel(call, const_cast<void*>(static_cast<const void*>(&run)),
                  static_cast<unsigned>(most), 0);
    return;
  }
#endif
  static_cast<void>(most);
  run_from(progress, 0, num_threads, body);
}

}  // namespace
}  // namespace fastlstm::cpu
