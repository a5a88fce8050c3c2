// Fibers: stacks of their own for the threads of a kernel, and the switch from one to another.
#pragma once

#include <cstddef>

namespace fastlstm::emulation {

// Keeps this stack's registers on it and its top in *from, and goes on with the stack whose top is
// `to`. Returns when some other stack switches back.
extern "C" void fastlstm_emulation_switch(void** from, void* to);

// A pool of stacks, each touched only as far as it is used.
class Stacks {
 public:
  ~Stacks();

  // Room for `count` stacks; what ran on the stacks of before is lost.
  void reserve(size_t count);

  // The top of a stack that runs `entry` once it is switched to. `entry` must not return.
  void* start(size_t index, void (*entry)());

  // Whether nothing has run over the end of the stack.
  bool intact(size_t index) const;

  // Gives the memory back, but not the addresses.
  void release();

 private:
  char* memory_ = nullptr;
  size_t count_ = 0;
};

}  // namespace fastlstm::emulation
