// A place in the source of a kernel.
#pragma once

#include <cstring>
#include <string>

namespace fastlstm::emulation {

struct CallSite {
  const char* file = "";
  int line = 0;

  // Of the caller, as a default argument.
  static CallSite here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }

  // "file:line", without the folder.
  std::string name() const {
    const char* slash = std::strrchr(file, '/');
    return std::string(slash ? slash + 1 : file) + ":" + std::to_string(line);
  }

  bool operator==(const CallSite& other) const {
    return line == other.line && (file == other.file || std::strcmp(file, other.file) == 0);
  }
  bool operator!=(const CallSite& other) const { return !(*this == other); }
};

}  // namespace fastlstm::emulation
