// What a warp does with fragments, once all of its lanes have brought theirs.
#pragma once

#include <cstdint>

#include "call_site.h"

namespace fastlstm::emulation {

enum class Number { bfloat16, float16, tf32 };

void load_matrices(uint32_t (&to)[4], const void* row, const CallSite& site);
void multiply_add(Number number, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                  const CallSite& site);

}  // namespace fastlstm::emulation
