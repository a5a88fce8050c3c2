// The device that the emulation pretends to be: an H100, unless told otherwise.
#pragma once

#include <cstddef>

namespace fastlstm::emulation {

struct PretendedDevice {
  int major = 9, minor = 0;
  int multiprocessors = 132;
  int shared_memory = 232448;  // bytes that one block may ask for
};

inline PretendedDevice pretended_device;

}  // namespace fastlstm::emulation
