#include "emulator.h"

#include <algorithm>
#include <mutex>
#include <numeric>

#include "fault.h"
#include "fiber.h"
#include "memory.h"
#include "report.h"
#include "schedule.h"

// What the running thread reads; kernels know them by these names.
uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace fastlstm::emulation {
namespace {

constexpr unsigned kMaxThreads = 1024;      // of a block
constexpr unsigned kMaxResident = 8;        // blocks of a launch that is not cooperative
constexpr size_t kStacksToKeep = 4096;      // between launches; more of them give their memory back
constexpr size_t kPollsInVain = 64;         // for each warp that polls, until it is a deadlock
constexpr unsigned kAllArrived = 1u << 30;  // what a faulty poll sees

uint64_t seed = 0;
uint64_t switch_limit = 1'000'000'000;

Thread* current = nullptr;

// One launch that runs.
class Grid {
 public:
  explicit Grid(const Launch& launch);
  void run();

  // Called by threads.
  [[noreturn]] void finish_thread();
  void suspend();
  void release_barrier(Block& block);
  void make_ready(Warp& warp, uint32_t lanes);
  void give_up(const std::string& why);

  const Launch& what;
  Schedule schedule;
  bool progress = false;  // a thread did something other than to poll in vain

 private:
  void start_block(Block& block);
  void run_warp(Warp& warp);
  void resume(Thread& thread);
  void check_block(const Block& block);

  unsigned threads_;               // of a block
  std::vector<Block> blocks_;      // resident
  std::vector<unsigned> waiting_;  // numbers of the blocks that have not started
  void* scheduler_ = nullptr;      // the stack of run()
  Warp* running_ = nullptr;
  uint64_t switches_ = 0;
  std::string failure_;

  static Stacks stacks;
};

Stacks Grid::stacks;
Grid* grid = nullptr;

void run_thread() {
  grid->what.body();
  grid->finish_thread();
}

Grid::Grid(const Launch& launch)
    : what(launch), schedule(seed), threads_(launch.block.x * launch.block.y * launch.block.z) {
  if (threads_ == 0 || threads_ > kMaxThreads || threads_ % kLanes != 0) {
    throw Failure("the emulation runs blocks of whole warps and of at most 1024 threads, not of " +
                  std::to_string(threads_));
  }
  waiting_.resize(size_t{launch.grid.x} * launch.grid.y * launch.grid.z);
  std::iota(waiting_.begin(), waiting_.end(), 0u);
  size_t resident = waiting_.size();
  if (!launch.cooperative) {
    resident = std::min(resident, size_t{1 + schedule.random.below(kMaxResident)});
    for (size_t i = waiting_.size(); i > 1; --i) {
      std::swap(waiting_[i - 1], waiting_[schedule.random.below(i)]);
    }
  }
  stacks.reserve(resident * threads_);
  blocks_.resize(resident);
  for (Block& block : blocks_) {
    block.threads.resize(threads_);
    block.warps.resize(threads_ / kLanes);
    start_block(block);
  }
}

void Grid::start_block(Block& block) {
  const unsigned number = waiting_.back();
  waiting_.pop_back();
  block.index = {number % what.grid.x, number / what.grid.x % what.grid.y,
                 number / what.grid.x / what.grid.y};
  block.alive = threads_;
  block.arrived = 0;
  poison_shared(block, what.shared_bytes);
  for (size_t i = 0; i < block.warps.size(); ++i) {
    Warp& warp = block.warps[i];
    warp = {};
    warp.block = &block;
    warp.threads = &block.threads[i * kLanes];
    warp.alive = kAllLanes;
  }
  const size_t first_stack = (&block - blocks_.data()) * threads_;
  for (unsigned i = 0; i < threads_; ++i) {
    Thread& thread = block.threads[i];
    thread = {};
    thread.stack_top = stacks.start(first_stack + i, run_thread);
    thread.warp = &block.warps[i / kLanes];
    thread.index = {i % what.block.x, i / what.block.x % what.block.y,
                    i / what.block.x / what.block.y};
    thread.number = i;
  }
  schedule.prioritise(block);
  for (Warp& warp : block.warps) make_ready(warp, kAllLanes);
}

void Grid::run() {
  size_t in_vain = 0;  // runs of a warp since one of them made progress
  while (Warp* warp = schedule.next()) {
    running_ = warp;
    for (int left = schedule.burst(); left > 0 && warp->ready != 0; --left) {
      progress = false;
      run_warp(*warp);
      if (!failure_.empty()) throw Failure(failure_);
      warp->spinning = !progress;
      in_vain = progress ? 0 : in_vain + 1;
      if (warp->spinning) break;
    }
    running_ = nullptr;
    if (warp->ready != 0) schedule.add(warp);
    if (schedule.all_spin() && in_vain > kPollsInVain * (schedule.runnable() + 1)) break;
    if (switches_ > switch_limit) {
      throw Failure("no end after " + std::to_string(switches_) + " switches: " + stuck(blocks_));
    }
    Block& block = *warp->block;
    if (block.alive == 0) {
      check_block(block);
      if (!waiting_.empty()) start_block(block);
    }
  }
  const std::string left = stuck(blocks_);
  if (!left.empty()) throw Failure("deadlock: " + left);
  if (blocks_.size() * threads_ > kStacksToKeep) stacks.release();
}

void Grid::run_warp(Warp& warp) {
  const uint32_t ready = warp.ready;
  warp.ready = 0;
  const uint64_t draw = schedule.random.next();
  const unsigned start = draw % kLanes, step = (draw / kLanes) | 1;
  for (unsigned i = 0; i < kLanes && failure_.empty(); ++i) {
    const unsigned lane = (start + i * step) % kLanes;
    if (ready >> lane & 1) resume(warp.threads[lane]);
  }
}

void Grid::resume(Thread& thread) {
  ++switches_;
  current = &thread;
  complete_some_copies(thread);
  threadIdx = thread.index;
  blockIdx = thread.warp->block->index;
  fastlstm_emulation_switch(&scheduler_, thread.stack_top);
}

void Grid::suspend() { fastlstm_emulation_switch(&current->stack_top, scheduler_); }

void Grid::make_ready(Warp& warp, uint32_t lanes) {
  const bool listed = warp.ready != 0 || &warp == running_;
  warp.ready |= lanes;
  if (!listed && lanes != 0) {
    warp.spinning = false;
    schedule.add(&warp);
  }
}

void Grid::finish_thread() {
  Warp& warp = *current->warp;
  Block& block = *warp.block;
  warp.alive &= ~(1u << (current->number % kLanes));
  --block.alive;
  progress = true;
  if (block.alive != 0 && block.arrived == block.alive) release_barrier(block);
  suspend();
  __builtin_unreachable();
}

// Threads that have returned are not waited for, as on a GPU since Volta.
void Grid::release_barrier(Block& block) {
  block.arrived = 0;
  for (Warp& warp : block.warps) {
    const uint32_t lanes = warp.at_barrier;
    warp.at_barrier = 0;
    make_ready(warp, lanes);
  }
}

void Grid::give_up(const std::string& why) { failure_ = why; }

void Grid::check_block(const Block& block) {
  if (!guards_intact(block)) {
    throw Failure("block " + index_name(block.index) + " wrote outside of its " +
                  std::to_string(block.shared_bytes) + " bytes of shared memory");
  }
  const size_t first_stack = (&block - blocks_.data()) * threads_;
  for (size_t i = 0; i < threads_; ++i) {
    if (!stacks.intact(first_stack + i)) {
      stacks.release();
      throw Failure("a thread ran over the end of its stack");
    }
  }
}

uint32_t lane_bit(const Thread& thread) { return 1u << (thread.number % kLanes); }

void wait_in(const char* operation, const CallSite& site) {
  current->operation = operation;
  current->site = site;
  grid->suspend();
  current->operation = nullptr;
}

}  // namespace

void set_schedule(uint64_t new_seed, uint64_t switches) {
  seed = new_seed;
  switch_limit = switches;
}

void launch(const Launch& launch) {
  static std::mutex one_at_a_time;
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  if (size_t{launch.grid.x} * launch.grid.y * launch.grid.z == 0) return;
  Grid now(launch);
  grid = &now;
  blockDim = {launch.block.x, launch.block.y, launch.block.z};
  gridDim = {launch.grid.x, launch.grid.y, launch.grid.z};
  now.run();
}

Thread& this_thread() { return *current; }

bool happens_once_in(unsigned count) { return grid->schedule.random.one_in(count); }

void fail(const std::string& why) {
  grid->give_up(why + ", in " + thread_name(*current));
  grid->suspend();
  __builtin_unreachable();
}

void yield(const char* operation, const CallSite& site) {
  grid->make_ready(*current->warp, lane_bit(*current));
  wait_in(operation, site);
}

void synchronise_block(const CallSite& site) {
  grid->progress = true;
  if (goes_wrong(Fault::syncthreads, site)) return;
  Warp& warp = *current->warp;
  Block& block = *warp.block;
  if (block.arrived == 0) block.site = site;
  if (block.site != site) {
    fail("threads of a block meet in __syncthreads at " + block.site.name() + " and at " +
         site.name());
  }
  current->polled = nullptr;
  warp.at_barrier |= lane_bit(*current);
  if (++block.arrived == block.alive) grid->release_barrier(block);
  wait_in("__syncthreads", site);
}

void meet(const char* operation, const CallSite& site, const void* in, void* out,
          void (*finish)(Warp&)) {
  Warp& warp = *current->warp;
  const unsigned lane = current->number % kLanes;
  grid->progress = true;
  current->polled = nullptr;
  if (warp.met == 0) {
    warp.operation = operation;
    warp.site = site;
  } else if (warp.operation != operation || warp.site != site) {
    fail(std::string("the lanes of a warp meet in ") + warp.operation + " at " + warp.site.name() +
         " and in " + operation + " at " + site.name());
  }
  warp.in[lane] = in;
  warp.out[lane] = out;
  warp.met |= 1u << lane;
  if (warp.met == kAllLanes) {
    warp.met = 0;
    finish(warp);
    grid->make_ready(warp, kAllLanes);
  }
  wait_in(operation, site);
}

unsigned poll(const unsigned* counter, const CallSite& site) {
  if (goes_wrong(Fault::poll, site)) return kAllArrived;
  const auto value = [&] { return *const_cast<const volatile unsigned*>(counter); };
  Thread& thread = *current;
  if (thread.polled != counter || thread.seen != value()) grid->progress = true;
  yield("poll", site);
  thread.polled = counter;
  return thread.seen = value();
}

void arrive(unsigned* counter, const CallSite& site) {
  grid->progress = true;
  yield("arrive", site);
  ++*counter;
  grid->progress = true;
  current->polled = nullptr;
}

}  // namespace fastlstm::emulation
