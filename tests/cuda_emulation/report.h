// Words about threads for what a launch that failed says.
#pragma once

#include <string>
#include <vector>

#include "grid.h"

namespace fastlstm::emulation {

std::string index_name(const uint3& index);  // "(3, 0, 0)"
std::string thread_name(const Thread& thread);

// Which threads of these blocks wait where, by the operation; empty if all have returned.
std::string stuck(const std::vector<Block>& blocks);

}  // namespace fastlstm::emulation
