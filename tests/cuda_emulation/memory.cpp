#include "memory.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "device.h"
#include "emulator.h"
#include "fault.h"

namespace fastlstm::emulation {
namespace {

constexpr size_t kAlignment = 128;
constexpr size_t kGuard = 512;                  // bytes on either side
constexpr uint8_t kGuardByte[] = {0xa5, 0xff};  // NaN in float, bfloat16 and float16
constexpr uint8_t kPoison = 0xff;               // NaN in any type
constexpr size_t kCopyBytes = 16;
constexpr int kCompleteEvery = 8;  // a copy that is late completes in one of so many switches

// The memory from which copies are counted, and their number.
uintptr_t counted_from = 0;
size_t counted_bytes = 0;
int64_t counted = 0;

template <class Predicate>
void complete(Thread& thread, Predicate predicate) {
  const auto done = [&](const Copy& copy) {
    if (!predicate(copy)) return false;
    std::memcpy(copy.to, copy.from, kCopyBytes);
    return true;
  };
  auto& copies = thread.copies;
  copies.erase(std::remove_if(copies.begin(), copies.end(), done), copies.end());
}

template <class Function>
bool all_guards(const Block& block, Function function) {
  const unsigned char* memory = block.memory.data();
  const size_t before = block.shared - memory, after = before + block.shared_bytes;
  for (size_t i = 0; i < block.memory.size(); ++i) {
    if (i == before) i = after;
    if (!function(i)) return false;
  }
  return true;
}

}  // namespace

void poison_shared(Block& block, size_t bytes) {
  block.memory.resize(kGuard + kAlignment + bytes + kGuard);
  const auto address = reinterpret_cast<uintptr_t>(block.memory.data()) + kGuard;
  const size_t padding = (kAlignment - address % kAlignment) % kAlignment;
  block.shared = block.memory.data() + kGuard + padding;
  block.shared_bytes = bytes;
  all_guards(block, [&](size_t i) {
    block.memory[i] = kGuardByte[i % 2];
    return true;
  });
  std::memset(block.shared, kPoison, bytes);
}

bool guards_intact(const Block& block) {
  return all_guards(block, [&](size_t i) { return block.memory[i] == kGuardByte[i % 2]; });
}

void check_shared(const void* pointer, size_t bytes, const char* operation, const CallSite& site) {
  const Block& block = *this_thread().warp->block;
  const size_t offset = static_cast<const unsigned char*>(pointer) - block.shared;
  if (offset % bytes != 0 || offset + bytes > block.shared_bytes || offset + bytes < bytes) {
    fail(std::string(operation) + " at " + site.name() + ": offset " +
         std::to_string(static_cast<int64_t>(offset)) + " is not that of " + std::to_string(bytes) +
         " aligned bytes of shared memory");
  }
}

void copy_async_16(void* shared, const void* global, const CallSite& site) {
  check_shared(shared, kCopyBytes, "copy_async_16", site);
  if (reinterpret_cast<uintptr_t>(global) % kCopyBytes != 0) {
    fail("copy_async_16 at " + site.name() + ": the source is not aligned to 16 bytes");
  }
  counted += reinterpret_cast<uintptr_t>(global) - counted_from < counted_bytes;
  if (happens_once_in(2)) {
    std::memcpy(shared, global, kCopyBytes);
  } else {
    std::memset(shared, kPoison, kCopyBytes);
    this_thread().copies.push_back({shared, global, 0});
  }
}

void commit_copies() {
  Thread& thread = this_thread();
  ++thread.groups;
  for (Copy& copy : thread.copies) {
    if (copy.group == 0) copy.group = thread.groups;
  }
}

void wait_copies(int pending, const CallSite& site) {
  if (goes_wrong(Fault::wait_copies, site)) return;
  Thread& thread = this_thread();
  const int last = thread.groups - pending;
  complete(thread, [&](const Copy& copy) { return copy.group != 0 && copy.group <= last; });
}

int64_t count_copies(uintptr_t address, size_t bytes) {
  counted_from = address;
  counted_bytes = bytes;
  return std::exchange(counted, 0);
}

void complete_some_copies(Thread& thread) {
  if (thread.copies.empty()) return;
  complete(thread, [](const Copy&) { return happens_once_in(kCompleteEvery); });
}

}  // namespace fastlstm::emulation
