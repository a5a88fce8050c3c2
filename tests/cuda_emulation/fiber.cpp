#include "fiber.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <new>

// What a function must leave as it found it: the calling conventions of System V and of ARM.
#if defined(__x86_64__)
asm(R"(
.text
.globl fastlstm_emulation_switch
.hidden fastlstm_emulation_switch
.type fastlstm_emulation_switch, @function
fastlstm_emulation_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");
#elif defined(__aarch64__)
asm(R"(
.text
.globl fastlstm_emulation_switch
.hidden fastlstm_emulation_switch
.type fastlstm_emulation_switch, @function
fastlstm_emulation_switch:
  sub sp, sp, #160
  stp x19, x20, [sp]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
)");
#else
#error "the emulation of CUDA switches stacks on x86-64 and on 64-bit ARM only"
#endif

namespace fastlstm::emulation {
namespace {

// Not a power of two: the tops of a warp's 32 stacks would share a few sets of the caches.
constexpr size_t kStackBytes = (48 << 10) + 192;
constexpr size_t kUntouched = 64;  // bytes at the end of a stack that stay zero

}  // namespace

Stacks::~Stacks() {
  if (memory_ != nullptr) munmap(memory_, count_ * kStackBytes);
}

void Stacks::reserve(size_t count) {
  if (count <= count_) return;
  if (memory_ != nullptr) munmap(memory_, count_ * kStackBytes);
  memory_ = nullptr, count_ = 0;
  void* memory = mmap(nullptr, count * kStackBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  memory_ = static_cast<char*>(memory), count_ = count;
}

void* Stacks::start(size_t index, void (*entry)()) {
  const auto end = reinterpret_cast<uintptr_t>(memory_ + (index + 1) * kStackBytes);
  auto* top = reinterpret_cast<uintptr_t*>(end / 16 * 16);
#if defined(__x86_64__)
  *--top = 0;  // where entry would return to; it also aligns the stack as a call does
  *--top = reinterpret_cast<uintptr_t>(entry);
  for (int i = 0; i < 6; ++i) *--top = 0;
#else
  top -= 20;
  std::fill(top, top + 20, 0);
  top[11] = reinterpret_cast<uintptr_t>(entry);  // x30
#endif
  return top;
}

bool Stacks::intact(size_t index) const {
  const char* end = memory_ + index * kStackBytes;
  return std::all_of(end, end + kUntouched, [](char byte) { return byte == 0; });
}

void Stacks::release() { madvise(memory_, count_ * kStackBytes, MADV_DONTNEED); }

}  // namespace fastlstm::emulation
