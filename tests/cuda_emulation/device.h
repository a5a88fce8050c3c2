// The device that the emulation pretends to be: an H100, unless told otherwise.
#pragma once

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

}  // namespace fastlstm::emulation
