#pragma once

#include <string>

namespace fastlstm::harness {

// Runs a kernel that makes the mistake of that name; returns what it computed, in words.
std::string mistake(const std::string& name);

}  // namespace fastlstm::harness
