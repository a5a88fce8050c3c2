// Shared memory, and the copies that are on their way to it.
#pragma once

#include "grid.h"

namespace fastlstm::emulation {

// All of the block's memory is NaN, in any type.
void poison_shared(Block& block, size_t bytes);

// Nothing was written right before or after it.
bool guards_intact(const Block& block);

// Copies that nobody waits for yet may complete at any time.
void complete_some_copies(Thread& thread);

}  // namespace fastlstm::emulation
