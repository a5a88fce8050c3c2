#include "schedule.h"

namespace fastlstm::emulation {
namespace {

constexpr int kContenders[] = {1, 16, 16, 4};
constexpr bool kByBlock[] = {false, false, true, false};
constexpr int kSpinEvery = 16;      // a warp that polls in vain runs so much more seldom
constexpr int kChangeEvery = 1024;  // draws between changes of a priority

}  // namespace

Random::Random(uint64_t seed) : state_((seed + 1) * 0x9e3779b97f4a7c15u) {
  for (int i = 0; i < 4; ++i) next();  // small seeds have few bits
}

uint64_t Random::next() {
  state_ ^= state_ << 13;
  state_ ^= state_ >> 7;
  state_ ^= state_ << 17;
  return state_;
}

Schedule::Schedule(uint64_t seed)
    : random(seed), contenders_(kContenders[seed % 4]), by_block_(kByBlock[seed % 4]) {}

void Schedule::prioritise(Block& block) {
  const auto shared = static_cast<uint32_t>(random.next());
  for (Warp& warp : block.warps) {
    warp.priority = by_block_ ? shared : static_cast<uint32_t>(random.next());
  }
}

Warp* Schedule::next() {
  if (runnable() == 0) return nullptr;
  const bool spin = busy_.empty() || (!spinning_.empty() && random.one_in(kSpinEvery));
  auto& from = spin ? spinning_ : busy_;
  size_t first = random.below(from.size());
  // All that spin get their turn, or none might see that the other's counter has moved.
  for (int draw = 1; draw < contenders_ && !spin; ++draw) {
    const size_t other = random.below(from.size());
    if (from[other]->priority > from[first]->priority) first = other;
  }
  Warp* warp = from[first];
  from[first] = from.back();
  from.pop_back();
  if (random.one_in(kChangeEvery)) warp->priority = static_cast<uint32_t>(random.next());
  return warp;
}

}  // namespace fastlstm::emulation
