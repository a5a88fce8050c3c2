// The instructions for which CUDA C++ has no functions: the only file with PTX. The kernels include
// it as "cuda/primitives.cuh"; the tests replace it by a file of that name that does the same on a
// CPU.
//
// Everything here exists since sm_80. Fragments are those of mma.sync.m16n8k16 (m16n8k8 for tf32)
// in the PTX manual: `a` 16 x k of weights, `b` k x 8 of h or dgates, `d` 16 x 8 sums. Lane l holds
// rows l / 4 and l / 4 + 8 of `d`, and its columns 2 (l % 4) and 2 (l % 4) + 1.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace fastlstm::cuda {

// A float of whose mantissa products use 10 bits.
struct Tf32 {
  float value;
};

__device__ __forceinline__ unsigned shared_address(const void* pointer) {
  return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}

// The same number, of which the compiler knows nothing: it cannot compute ahead of a loop, and keep
// in registers, what follows from it.
__device__ __forceinline__ int opaque(int number) {
  asm volatile("" : "+r"(number));
  return number;
}

// The block's dynamic shared memory, 128-byte aligned.
__device__ __forceinline__ unsigned char* dynamic_shared() {
  extern __shared__ __align__(128) unsigned char fastlstm_dynamic_shared[];
  return fastlstm_dynamic_shared;
}

// The same as an address of shared memory, which the functions below take. Volatile: otherwise the
// compiler reads it from a special register at each use, which takes 35 cycles since sm_90.
__device__ __forceinline__ unsigned shared_memory() {
  unsigned address;
  asm volatile("mov.u32 %0, %1;" : "=r"(address) : "r"(shared_address(dynamic_shared())));
  return address;
}

template <class Value>
__device__ __forceinline__ Value load_shared(unsigned address);
template <>
__device__ __forceinline__ float load_shared<float>(unsigned address) {
  float value;
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(value) : "r"(address) : "memory");
  return value;
}
template <>
__device__ __forceinline__ float4 load_shared<float4>(unsigned address) {
  float4 value;
  asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(value.x), "=f"(value.y), "=f"(value.z), "=f"(value.w)
               : "r"(address)
               : "memory");
  return value;
}
template <>
__device__ __forceinline__ uint4 load_shared<uint4>(unsigned address) {
  uint4 value;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "r"(address)
               : "memory");
  return value;
}

__device__ __forceinline__ void store_shared(unsigned address, float value) {
  asm volatile("st.shared.f32 [%0], %1;" ::"r"(address), "f"(value) : "memory");
}
__device__ __forceinline__ void store_shared(unsigned address, float4 value) {
  asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(address), "f"(value.x),
               "f"(value.y), "f"(value.z), "f"(value.w)
               : "memory");
}
__device__ __forceinline__ void store_shared(unsigned address, uint4 value) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(value.x),
               "r"(value.y), "r"(value.z), "r"(value.w)
               : "memory");
}

// Copies 16 bytes to shared memory if `wanted`, bypassing L1, so that it reads what other blocks
// wrote before a barrier. The copy is complete after wait_copies.
__device__ __forceinline__ void copy_async_16(bool wanted, unsigned shared, const void* global) {
  asm volatile(
      "{ .reg .pred wanted; setp.ne.u32 wanted, %2, 0;"
      "@wanted cp.async.cg.shared.global [%0], [%1], 16; }" ::"r"(shared),
      "l"(global), "r"(static_cast<unsigned>(wanted))
      : "memory");
}

__device__ __forceinline__ void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until at most kPending of this thread's committed groups are pending.
template <int kPending>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Four matrices of 8 rows of 16 bytes: lane l gives the address of row l % 8 of matrix l / 8, and
// gets the four bytes at l % 4 of row l / 4 of each.
__device__ __forceinline__ void load_matrices(uint32_t (&to)[4], unsigned row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(row)
               : "memory");
}

// d += a b, of 16 x 16 by 16 x 8 numbers, or of 16 x 8 by 8 x 8 for Tf32.
__device__ __forceinline__ void multiply_add(__nv_bfloat16, float (&d)[4], const uint32_t (&a)[4],
                                             const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ __forceinline__ void multiply_add(__half, float (&d)[4], const uint32_t (&a)[4],
                                             const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ __forceinline__ void multiply_add(Tf32, float (&d)[4], const uint32_t (&a)[4],
                                             const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// The bits of a float rounded to nearest as products of tf32 read it; the rest of them are zero.
// Volatile: otherwise the compiler rounds weights in registers once, before the loop over steps,
// and keeps the result in as many registers again.
__device__ __forceinline__ uint32_t round_to_tf32(float value) {
  uint32_t bits;
  asm volatile("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
  return bits;
}

// arrive adds one to a counter; a thread that reads the new value by `poll` sees all that this
// thread saw and wrote before.
__device__ __forceinline__ void arrive(unsigned* counter) {
  asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
}

__device__ __forceinline__ unsigned poll(const unsigned* counter) {
  unsigned value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(counter) : "memory");
  return value;
}

}  // namespace fastlstm::cuda
