// Packs weight matrices as stream.h describes. Compiled once: the number of lanes is an argument.
#pragma once

#include <cmath>
#include <cstring>

#include "stream.h"

namespace fastlstm::cpu {
namespace {

// A weight matrix (rows, columns). If `gates`, its rows are the four gates of a fourth as many
// units.
struct PlainMatrix {
  const float* data;
  int64_t rows, columns;
  bool gates;

  int64_t panels(int64_t lanes) const {
    const int64_t vectors = gates ? 1 : 4, height = gates ? rows / 4 : rows;
    return (height + vectors * lanes - 1) / (vectors * lanes);
  }
  // The row in a lane of a panel's vector, or null beyond the end.
  const float* row(int64_t panel, int64_t vector, int64_t lane, int64_t lanes) const {
    const int64_t unit = gates ? panel * lanes + lane : (panel * 4 + vector) * lanes + lane;
    const int64_t height = gates ? rows / 4 : rows;
    return unit < height ? data + (gates ? vector * height + unit : unit) * columns : nullptr;
  }
};

inline uint32_t bits_of(float number) {
  uint32_t bits;
  std::memcpy(&bits, &number, sizeof(bits));
  return bits;
}

// Rounds to the nearest bfloat16, ties to even. A NaN stays one.
inline uint32_t bfloat16_bits(float number) {
  const uint32_t bits = bits_of(number);
  return number == number ? (bits + 0x7fff + (bits >> 16 & 1)) >> 16 : bits >> 16 | 0x40;
}

// The scale of a row's integers, which are -127 to 127. NaN if the row has a NaN or an infinity.
inline float int8_scale(const float* row, int64_t columns) {
  float largest = 0, zero = 0;
  for (int64_t k = 0; k < columns; ++k) {
    largest = std::fabs(row[k]) > largest ? std::fabs(row[k]) : largest;
    zero += row[k] * 0;
  }
  return largest / 127 + zero;
}

// One word of a row from column k on; `scale` only for int8.
inline uint32_t packed_word(WeightType type, const float* row, int64_t columns, int64_t k,
                            float scale) {
  const auto at = [&](int64_t i) { return i < columns ? row[i] : 0.0f; };
  if (type == WeightType::float32) return bits_of(at(k));
  if (type == WeightType::bfloat16) {
    return bfloat16_bits(at(k)) | bfloat16_bits(at(k + 1)) << 16;
  }
  uint32_t word = 0;
  if (!(scale > 0)) return word;
  for (int i = 0; i < 4; ++i) {
    const auto integer = static_cast<int32_t>(std::nearbyint(at(k + i) / scale));
    word |= (static_cast<uint32_t>(integer) & 255) << (8 * i);
  }
  return word;
}

inline float sum_of_bytes(uint32_t word) {
  float sum = 0;
  for (int i = 0; i < 4; ++i) sum += static_cast<int8_t>(word >> (8 * i));
  return sum;
}

// Fills the arrays of `to`.
inline void pack(WeightType type, const PlainMatrix& from, int64_t lanes, const StreamMatrix& to) {
  constexpr int64_t kMostLanes = kPadding;
  const int64_t words = to.words_of_depth(type), panel_rows = 4 * lanes;
  uint32_t* next = to.words;
  for (int64_t panel = 0; panel < from.panels(lanes); ++panel) {
    const float* row[4 * kMostLanes];
    float scale[4 * kMostLanes] = {}, sum[4 * kMostLanes] = {};
    for (int64_t i = 0; i < panel_rows; ++i) {
      row[i] = from.row(panel, i / lanes, i % lanes, lanes);
      if (row[i] && type == WeightType::int8) scale[i] = int8_scale(row[i], from.columns);
    }
    for (int64_t word = 0; word < words; ++word) {
      for (int64_t i = 0; i < panel_rows; ++i) {
        const int64_t k = word * numbers_per_word(type);
        *next = row[i] ? packed_word(type, row[i], from.columns, k, scale[i]) : 0;
        if (type == WeightType::int8) sum[i] += sum_of_bytes(*next);
        ++next;
      }
    }
    if (type != WeightType::int8) continue;
    for (int64_t i = 0; i < panel_rows; ++i) {
      to.scale[panel * panel_rows + i] = scale[i];
      to.offset[panel * panel_rows + i] = -32768 * sum[i];
    }
  }
}

}  // namespace
}  // namespace fastlstm::cpu
