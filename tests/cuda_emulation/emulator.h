// Runs a kernel on one thread of the CPU: each of its threads is a fiber, which runs until it waits
// for others. Which of them runs next is drawn from a seed.
//
// A launch throws Failure, with who waits where, if the threads wait for each other for ever, if
// those of a warp meet in different operations, if those of a block meet in different barriers, or
// if something was written outside of shared memory.
//
// Shared memory is NaN until it is written, and so is what copy_async_16 writes until the copy is
// complete. Copies read their source at once, or late: up to the moment when they are waited for.
//
// What it cannot see: a missing fence (what one thread wrote, all see at once), and a collective
// that lanes reach without having agreed on memory, but for load_matrices, which reads a row when
// its lane arrives.
#pragma once

#include <functional>
#include <stdexcept>

#include "grid.h"

namespace fastlstm::emulation {

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Launch {
  uint3 grid, block;
  size_t shared_bytes;
  bool cooperative;  // all blocks are resident at once; else a few, and the next as one returns
  std::function<void()> body;
};

// The seed of all launches to come, and how often threads may be switched in one.
void set_schedule(uint64_t seed, uint64_t switches);

void launch(const Launch& launch);

// What follows is called by the running thread.

Thread& this_thread();

// A choice that hardware leaves open.
bool happens_once_in(unsigned count);

// Gives up the launch.
[[noreturn]] void fail(const std::string& why);

// Lets others run. `operation` names what it is in, for reports.
void yield(const char* operation, const CallSite& site);

void synchronise_block(const CallSite& site);

// Waits until all lanes of the warp have called this. The last one calls `finish`, with what each
// brought in warp.in and warp.out.
void meet(const char* operation, const CallSite& site, const void* in, void* out,
          void (*finish)(Warp&));

unsigned poll(const unsigned* counter, const CallSite& site);
void arrive(unsigned* counter, const CallSite& site);

void copy_async_16(void* shared, const void* global, const CallSite& site);
void commit_copies();
void wait_copies(int pending, const CallSite& site);

// `bytes` at `pointer` are in the block's dynamic shared memory and aligned to their size, or the
// launch fails.
void check_shared(const void* pointer, size_t bytes, const char* operation, const CallSite& site);

}  // namespace fastlstm::emulation
