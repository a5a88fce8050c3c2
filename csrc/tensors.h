// Torch's tensors, read and made from C++ without torch's headers.
//
// A tensor is read in 0.06 us through DLPack's exchange functions. Versions of torch that lack them
// are asked for its attributes instead, which takes some 1 us a tensor.
#pragma once

#include <Python.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "lstm.h"

namespace fastlstm::torch {

constexpr int kMaxDims = 4;

enum class Type { float32, float64, bfloat16, int32, int64, boolean };

// A tensor in the CPU's memory. It is valid as long as the Python object is, and not resized.
struct Tensor {
  char* data;  // null only if there are no elements
  Type type;
  int dims;
  int64_t sizes[kMaxDims], strides[kMaxDims];  // strides count elements

  bool has_sizes(const int64_t* expected, int count) const;
  bool is_contiguous() const;
  int64_t count() const;  // of elements
};

int64_t bytes_of(Type type);
PyObject* dtype_of(Type type);              // torch.float32 and so on; a borrowed reference
bool type_of(PyObject* dtype, Type& type);  // false for any other object

// Reads a plain tensor: one of class torch.Tensor or torch.nn.Parameter itself, dense, on the CPU,
// of a type above, with at most kMaxDims dimensions. Returns false for every other object, also for
// a tensor that torch negates as it reads it (Tensor.is_neg) and for one whose memory was freed. No
// Python error is set.
bool read(PyObject* object, Tensor& tensor);

// The same for a tensor that was made here, which torch does not negate: without asking.
bool read_new(PyObject* object, Tensor& tensor);

// Whether the object is of class torch.Tensor or torch.nn.Parameter itself.
bool is_plain(PyObject* object);

// Whether torch makes tensors of this type if it is asked for none. To name a type takes torch
// 0.12 us.
bool is_default(Type type);

// A new tensor of `count` dimensions on torch's default device, with anything in it. It returns
// null, with a Python error set, if there is no memory.
PyObject* allocate(Type type, bool is_default, const int64_t* sizes, const int64_t* strides,
                   int count);

// A new tensor of this memory, in order. release(data, bytes) is called when the last tensor on it
// is freed, in any thread, with or without the GIL, or at once if this returns null, with a Python
// error set.
PyObject* adopt(char* data, size_t bytes, Type type, const std::vector<int64_t>& sizes,
                void (*release)(char* data, size_t bytes));

// Whether torch fills the memory of new tensors: torch.utils.deterministic.
bool fills_new_memory();

// Chooses how tensors are read: through DLPack, which is the default where torch has it, or by
// their attributes. Returns what was chosen; for tests.
bool read_through_dlpack(bool wanted);

}  // namespace fastlstm::torch
