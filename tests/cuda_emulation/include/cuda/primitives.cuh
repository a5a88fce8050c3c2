// csrc/cuda/primitives.cuh on a CPU: the same names with the same meaning.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

#include "emulator.h"
#include "fragments.h"

namespace fastlstm::cuda {

using emulation::CallSite;

struct Tf32 {
  float value;
};

inline int opaque(int number) { return number; }

inline unsigned char* dynamic_shared() { return emulation::this_thread().warp->block->shared; }

// An address of shared memory is the number of bytes before it.
inline unsigned shared_address(const void* pointer) {
  return static_cast<unsigned>(static_cast<const unsigned char*>(pointer) - dynamic_shared());
}
inline unsigned shared_memory() { return 0; }

template <class Value>
Value load_shared(unsigned address, CallSite site = CallSite::here()) {
  const unsigned char* from = dynamic_shared() + address;
  emulation::check_shared(from, sizeof(Value), "load_shared", site);
  Value value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

template <class Value>
void store_shared(unsigned address, Value value, CallSite site = CallSite::here()) {
  unsigned char* to = dynamic_shared() + address;
  emulation::check_shared(to, sizeof(Value), "store_shared", site);
  std::memcpy(to, &value, sizeof value);
}

inline void copy_async_16(bool wanted, unsigned shared, const void* global,
                          CallSite site = CallSite::here()) {
  if (wanted) emulation::copy_async_16(dynamic_shared() + shared, global, site);
}

inline void commit_copies() { emulation::commit_copies(); }

template <int kPending>
void wait_copies(CallSite site = CallSite::here()) {
  emulation::wait_copies(kPending, site);
}

inline void load_matrices(uint32_t (&to)[4], unsigned row, CallSite site = CallSite::here()) {
  emulation::load_matrices(to, dynamic_shared() + row, site);
}

inline void multiply_add(__nv_bfloat16, float (&d)[4], const uint32_t (&a)[4],
                         const uint32_t (&b)[2], CallSite site = CallSite::here()) {
  emulation::multiply_add(emulation::Number::bfloat16, d, a, b, site);
}

inline void multiply_add(__half, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                         CallSite site = CallSite::here()) {
  emulation::multiply_add(emulation::Number::float16, d, a, b, site);
}

inline void multiply_add(Tf32, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                         CallSite site = CallSite::here()) {
  emulation::multiply_add(emulation::Number::tf32, d, a, b, site);
}

// To nearest, ties away from zero: adding half of the last bit that stays carries into it.
inline uint32_t round_to_tf32(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const bool finite = (bits & 0x7f800000u) != 0x7f800000u;
  return (finite ? bits + 0x1000u : bits) & 0xffffe000u;
}

inline void arrive(unsigned* counter, CallSite site = CallSite::here()) {
  emulation::arrive(counter, site);
}

inline unsigned poll(const unsigned* counter, CallSite site = CallSite::here()) {
  return emulation::poll(counter, site);
}

}  // namespace fastlstm::cuda
