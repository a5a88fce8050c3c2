#include "fragments.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstring>
#include <utility>

#include "emulator.h"
#include "fault.h"

namespace fastlstm::emulation {
namespace {

constexpr size_t kRowBytes = 16;

struct Row {
  uint32_t words[4];
};

void load_whole_warp(Warp& warp) {
  const bool wrong = goes_wrong(Fault::load_matrices, warp.site);
  for (int lane = 0; lane < kLanes; ++lane) {
    auto* to = static_cast<uint32_t*>(warp.out[lane]);
    for (int matrix = 0; matrix < 4; ++matrix) {
      to[matrix] = static_cast<const Row*>(warp.in[8 * matrix + lane / 4])->words[lane % 4];
    }
    if (wrong) std::swap(to[1], to[2]);
  }
}

struct Operands {
  const uint32_t *a, *b;
};

// How many numbers a register holds, and the i-th of them.
struct Bfloat16 {
  static constexpr int kNumbers = 2;
  static float number(uint32_t bits, int i) {
    return __bfloat162float({static_cast<uint16_t>(bits >> 16 * i)});
  }
};

struct Float16 {
  static constexpr int kNumbers = 2;
  static float number(uint32_t bits, int i) {
    return __half2float({static_cast<uint16_t>(bits >> 16 * i)});
  }
};

struct Tf32 {
  static constexpr int kNumbers = 1;
  static float number(uint32_t bits, int) {
    bits &= 0xffffe000u;  // the hardware does not look at the low 13 bits
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  }
};

template <class Format>
void multiply_whole_warp(Warp& warp) {
  constexpr int n = Format::kNumbers, kK = 8 * n;
  const bool wrong = goes_wrong(Fault::multiply_add, warp.site);
  float a[16][kK], b[kK][8], d[16][8];
  for (int lane = 0; lane < kLanes; ++lane) {
    const auto& from = *static_cast<const Operands*>(warp.in[lane]);
    const auto* sums = static_cast<const float*>(warp.out[lane]);
    const int row = lane / 4, column = 2 * (lane % 4);
    for (int half = 0; half < 2; ++half) {
      for (int i = 0; i < n; ++i) {
        const int k = half * kK / 2 + lane % 4 * n + i;
        a[row][k] = Format::number(from.a[2 * half + wrong], i);
        a[row + 8][k] = Format::number(from.a[2 * half + !wrong], i);
        b[k][row] = Format::number(from.b[half], i);
      }
      d[row + 8 * half][column] = sums[2 * half];
      d[row + 8 * half][column + 1] = sums[2 * half + 1];
    }
  }
  for (int row = 0; row < 16; ++row) {
    for (int k = 0; k < kK; ++k) {
      for (int column = 0; column < 8; ++column) d[row][column] += a[row][k] * b[k][column];
    }
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    auto* sums = static_cast<float*>(warp.out[lane]);
    const int row = lane / 4, column = 2 * (lane % 4);
    for (int half = 0; half < 2; ++half) {
      sums[2 * half] = d[row + 8 * half][column];
      sums[2 * half + 1] = d[row + 8 * half][column + 1];
    }
  }
}

}  // namespace

void load_matrices(uint32_t (&to)[4], const void* row, const CallSite& site) {
  check_shared(row, kRowBytes, "load_matrices", site);
  Row read;  // now: that other lanes have not arrived does not keep hardware from reading
  std::memcpy(&read, row, kRowBytes);
  meet("load_matrices", site, &read, to, load_whole_warp);
}

void multiply_add(Number number, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                  const CallSite& site) {
  constexpr void (*kFinish[])(Warp&) = {multiply_whole_warp<Bfloat16>, multiply_whole_warp<Float16>,
                                        multiply_whole_warp<Tf32>};
  const Operands operands{a, b};
  meet("multiply_add", site, &operands, d, kFinish[static_cast<int>(number)]);
}

}  // namespace fastlstm::emulation
