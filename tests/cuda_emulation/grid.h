// The state of a grid that runs: blocks of warps of threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "call_site.h"
#include "vector_types.h"

namespace fastlstm::emulation {

constexpr int kLanes = 32;
constexpr uint32_t kAllLanes = 0xffffffffu;

struct Warp;

// 16 bytes on their way to shared memory.
struct Copy {
  void* to;
  const void* from;
  int group;  // counts from 1; 0 until it is committed
};

struct Thread {
  void* stack_top;
  Warp* warp;
  uint3 index;
  unsigned number;  // in the block

  // What it waits in, for reports; null while it runs.
  const char* operation;
  CallSite site;

  const unsigned* polled;  // the last call was poll, of this counter
  unsigned seen;           // which stood at this

  std::vector<Copy> copies;
  int groups;  // of copies that were committed
};

struct Block;

struct Warp {
  Block* block;
  Thread* threads;      // kLanes of them
  uint32_t ready;       // lanes that can run
  uint32_t alive;       // lanes that have not returned
  uint32_t at_barrier;  // lanes that wait in __syncthreads

  // Lanes that have met in a collective, and what each brought.
  uint32_t met;
  const void* in[kLanes];
  void* out[kLanes];
  const char* operation;
  CallSite site;

  uint32_t priority;
  bool spinning;  // it did nothing but poll, in vain, when it last ran
};

struct Block {
  uint3 index;
  unsigned alive;    // threads that have not returned
  unsigned arrived;  // threads that wait in __syncthreads
  CallSite site;     // where
  std::vector<Warp> warps;
  std::vector<Thread> threads;
  std::vector<unsigned char> memory;  // guard, dynamic shared memory, guard
  unsigned char* shared;              // 128-byte aligned
  size_t shared_bytes;
};

}  // namespace fastlstm::emulation
