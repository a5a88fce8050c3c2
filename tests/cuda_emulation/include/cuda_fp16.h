// Stands in for CUDA's header of this name, as far as the kernels use it.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

struct __half {
  uint16_t bits;
};

inline float __half2float(__half from) {
  const uint32_t sign = (from.bits & 0x8000u) << 16, rest = (from.bits & 0x7fffu) << 13;
  float value;  // with an exponent that is 112 too small, whether it is subnormal or not
  std::memcpy(&value, &rest, sizeof value);
  value *= 0x1p112f;
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if (rest >= 0x0f800000u) bits |= 0x7f800000u;  // infinite or NaN
  bits |= sign;
  std::memcpy(&value, &bits, sizeof bits);
  return value;
}

// To nearest, ties to even.
inline __half __float2half_rn(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const auto sign = static_cast<uint16_t>(bits >> 16 & 0x8000u);
  const float size = std::fabs(value);
  const auto with_sign = [sign](uint32_t half) { return static_cast<uint16_t>(sign | half); };
  if (std::isnan(value)) return {0x7fff};
  if (size >= 65520.0f) return {with_sign(0x7c00)};
  if (size < 0x1p-14f) {  // subnormal: a multiple of 2^-24
    return {with_sign(static_cast<uint32_t>(std::nearbyint(size * 0x1p24f)))};
  }
  bits &= 0x7fffffffu;
  bits += 0xfffu + (bits >> 13 & 1);
  return {with_sign((bits >> 13) - (112u << 10))};
}
