#include "fault.h"

#include <algorithm>
#include <array>
#include <iterator>
#include <stdexcept>

namespace fastlstm::emulation {
namespace {

constexpr const char* kNames[] = {"none",     "poll",          "wait_copies", "syncthreads",
                                  "syncwarp", "load_matrices", "multiply_add"};
constexpr size_t kFaults = std::size(kNames);

Fault planted = Fault::none;
std::string planted_site;  // or empty: all
std::array<std::vector<CallSite>, kFaults> reached;

Fault parse(const std::string& name) {
  const auto found = std::find(std::begin(kNames), std::end(kNames), name);
  if (found == std::end(kNames)) throw std::invalid_argument("fault: there is no " + name);
  return static_cast<Fault>(found - std::begin(kNames));
}

}  // namespace

void set_fault(const std::string& name, const std::string& site) {
  planted = parse(name);
  planted_site = site;
}

std::vector<std::string> take_sites(const std::string& name) {
  std::vector<CallSite>& sites = reached[static_cast<size_t>(parse(name))];
  std::vector<std::string> names;
  for (const CallSite& site : sites) names.push_back(site.name());
  sites.clear();
  return names;
}

bool goes_wrong(Fault fault, const CallSite& site) {
  std::vector<CallSite>& sites = reached[static_cast<size_t>(fault)];
  if (std::find(sites.begin(), sites.end(), site) == sites.end()) sites.push_back(site);
  return fault == planted && (planted_site.empty() || planted_site == site.name());
}

}  // namespace fastlstm::emulation
