// Faults that are planted in a kernel from outside, to see that the tests find them.
#pragma once

#include <string>
#include <vector>

#include "call_site.h"

namespace fastlstm::emulation {

enum class Fault {
  none,
  poll,           // returns at once, as if all had arrived
  wait_copies,    // returns at once
  syncthreads,    // returns at once
  syncwarp,       // returns at once
  load_matrices,  // words 1 and 2 change places
  multiply_add,   // rows 0-7 and 8-15 of `a` change places
};

// Plants a fault at one call site ("file:line") or, if it is empty, at all. Throws
// std::invalid_argument for a name that is not one of the above.
void set_fault(const std::string& name, const std::string& site);

// The call sites that were reached since the last call of this function.
std::vector<std::string> take_sites(const std::string& name);

// Notes that the site was reached, and tells whether it is to go wrong.
bool goes_wrong(Fault fault, const CallSite& site);

}  // namespace fastlstm::emulation
