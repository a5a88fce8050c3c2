// Which warp runs next, and every other choice that hardware leaves open: all from one seed.
#pragma once

#include <cstdint>
#include <vector>

#include "grid.h"

namespace fastlstm::emulation {

// xorshift64: fast, and enough to draw schedules.
class Random {
 public:
  explicit Random(uint64_t seed);
  uint64_t next();
  uint64_t below(uint64_t limit) { return next() % limit; }
  bool one_in(uint64_t count) { return below(count) == 0; }

 private:
  uint64_t state_;
};

// Warps are drawn uniformly, or by priorities that change now and then, so that some warps or
// blocks run far ahead of others: orders that uniform draws never meet.
class Schedule {
 public:
  explicit Schedule(uint64_t seed);

  Random random;

  // Gives the warps of a block that starts their priorities.
  void prioritise(Block& block);

  void add(Warp* warp) { (warp->spinning ? spinning_ : busy_).push_back(warp); }

  // Removes and returns a warp; null if there is none.
  Warp* next();

  // How many times a drawn warp runs before another is drawn. Long ones spare the caches, which
  // the stacks of a large grid overflow.
  int burst() { return 1 << random.below(kBursts); }

  size_t runnable() const { return busy_.size() + spinning_.size(); }
  bool all_spin() const { return busy_.empty(); }

 private:
  static constexpr int kBursts = 8;

  int contenders_;  // the first by priority among so many draws runs
  bool by_block_;   // warps of a block share their priority
  std::vector<Warp*> busy_, spinning_;
};

}  // namespace fastlstm::emulation
