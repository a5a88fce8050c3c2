// The device that the emulation pretends to be: an H100, unless told otherwise.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

namespace fastlstm::emulation {

struct PretendedDevice {
  int major = 9, minor = 0;
  int multiprocessors = 132;
  int shared_memory = 232448;  // bytes that one block may ask for
};

inline PretendedDevice pretended_device;

// The limits of dynamic shared memory that were set for kernels since the last call.
std::vector<int> take_limits();

// The blocks, and the threads of each, of the launches since the last call.
std::vector<std::pair<size_t, unsigned>> take_launches();

// Counts asynchronous copies from `bytes` of memory at `address` from now on, and returns the count
// of those from where it was told the last time.
int64_t count_copies(uintptr_t address, size_t bytes);

}  // namespace fastlstm::emulation
