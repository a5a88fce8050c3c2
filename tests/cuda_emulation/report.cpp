#include "report.h"

#include <map>

namespace fastlstm::emulation {

std::string index_name(const uint3& index) {
  return "(" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " +
         std::to_string(index.z) + ")";
}

std::string thread_name(const Thread& thread) {
  return "thread " + index_name(thread.index) + " of block " +
         index_name(thread.warp->block->index);
}

std::string stuck(const std::vector<Block>& blocks) {
  struct Group {
    const Thread* first;
    size_t count;
  };
  std::map<std::string, Group> groups;
  for (const Block& block : blocks) {
    for (const Thread& thread : block.threads) {
      const bool alive = thread.warp->alive >> (thread.number % kLanes) & 1;
      if (!alive) continue;
      std::string where = "has not run";
      if (thread.operation != nullptr) {
        where = std::string("in ") + thread.operation + " at " + thread.site.name();
        if (thread.polled != nullptr) where += ", which reads " + std::to_string(thread.seen);
      }
      ++groups.insert({where, {&thread, 0}}).first->second.count;
    }
  }
  std::string report;
  for (const auto& [where, group] : groups) {
    if (!report.empty()) report += "; ";
    report += thread_name(*group.first);
    if (group.count > 1) report += " and " + std::to_string(group.count - 1) + " more";
    report += " " + where;
  }
  return report;
}

}  // namespace fastlstm::emulation
