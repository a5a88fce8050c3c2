// The part of DLPack that reads a tensor of Python in C, and that makes one of memory. Its layout
// is fixed by the standard (https://dmlc.github.io/dlpack, version 1). Torch has the functions that
// read from version 2.10 on.
#pragma once

#include <cstdint>

namespace fastlstm::dlpack {

constexpr int kCpu = 1;
constexpr uint32_t kMajorVersion = 1;
constexpr const char* kCapsule = "dlpack_exchange_api";

struct Tensor {
  void* data;
  struct {
    int type;
    int32_t index;
  } device;
  int32_t ndim;
  struct {
    uint8_t code, bits;
    uint16_t lanes;
  } dtype;
  int64_t *shape, *strides;  // strides count elements
  uint64_t byte_offset;
};

// What a capsule of this name holds, until whoever takes it over renames the capsule.
constexpr const char* kManaged = "dltensor";

struct ManagedTensor {
  Tensor tensor;
  void* context;
  void (*free)(ManagedTensor*);
};

enum TypeCode : uint8_t { kInt = 0, kFloat = 2, kBfloat = 4, kBool = 6 };

// What `torch.Tensor.__dlpack_c_exchange_api__` points to. Functions that are not called here have
// no types.
struct ExchangeApi {
  struct {
    uint32_t major, minor;
    void* previous;
  } version;
  void (*allocate)();
  void (*managed_from_object)();
  void (*managed_to_object)();
  // Fills a tensor that is valid as long as the object is. Returns 0, or sets a Python error. Null
  // if there is none.
  int (*from_object)(void* object, Tensor* tensor);
  void (*current_stream)();
};

}  // namespace fastlstm::dlpack
