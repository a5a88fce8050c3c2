// How Python's arguments become those of lstm.h: addresses, strides, flags, names of types.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "lstm.h"

namespace fastlstm {

using Address = uintptr_t;  // of a tensor's first element; 0 where the contract says null
using Strides = std::array<int64_t, 3>;
using Weight = std::pair<Address, int64_t>;  // group 0's address, elements to the next group's

inline DType parse_dtype(const std::string& name) {
  if (name == "float32") return DType::float32;
  if (name == "float64") return DType::float64;
  if (name == "bfloat16") return DType::bfloat16;
  if (name == "float16") return DType::float16;
  throw std::invalid_argument("dtype: expected float32, float64, bfloat16 or float16, got " + name);
}

// One flag per group, from any sequence that Python has: list, tuple or bytes.
inline std::vector<uint8_t> parse_reverse(const pybind11::sequence& reverse, int64_t G) {
  if (static_cast<int64_t>(reverse.size()) != G) {
    throw std::invalid_argument("reverse: expected " + std::to_string(G) + " flags, got " +
                                std::to_string(reverse.size()));
  }
  std::vector<uint8_t> flags;
  for (const pybind11::handle flag : reverse) flags.push_back(PyObject_IsTrue(flag.ptr()) == 1);
  return flags;
}

inline const void* in(Address address) { return reinterpret_cast<const void*>(address); }
inline void* out(Address address) { return reinterpret_cast<void*>(address); }

template <class Item>
const Item* array(Address address) {
  return static_cast<const Item*>(in(address));
}

inline LstmWeight weight(const Weight& from) { return {in(from.first), from.second}; }

}  // namespace fastlstm
