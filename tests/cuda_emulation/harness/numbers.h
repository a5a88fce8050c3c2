#pragma once

#include <cstdint>
#include <string>

namespace fastlstm::harness {

// `format` is bfloat16, float16 or tf32. Arrays of float come as addresses.

// `count` numbers to the format and back.
void round_trip(const std::string& format, uintptr_t from, uintptr_t to, int64_t count);

// d (16, 8) = a (16, K) b (8, K)^T, where K is 8 for tf32 and else 16, by one multiply_add.
void product(const std::string& format, uintptr_t a, uintptr_t b, uintptr_t d);

// Each of 32 numbers becomes their sum, by shuffles.
void warp_sum(uintptr_t numbers);

}  // namespace fastlstm::harness
