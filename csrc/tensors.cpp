#include "tensors.h"

#include <pybind11/pybind11.h>

#include <algorithm>
#include <iterator>

#include "dlpack.h"

namespace py = pybind11;

namespace fastlstm::torch {
namespace {

// What this file uses of torch. The objects are kept forever, as torch is.
struct Torch {
  PyObject *tensor_class, *parameter_class, *strided, *is_neg, *empty_strided, *get_default_dtype;
  PyObject *from_dlpack, *is_deterministic, *deterministic;
  PyObject* dtypes[6];  // in the order of Type
  const dlpack::ExchangeApi* exchange = nullptr;
  bool uses_exchange;

  PyObject* const dtype_keyword = PyTuple_Pack(1, PyUnicode_InternFromString("dtype"));
  PyObject* const data_ptr = PyUnicode_InternFromString("data_ptr");
  PyObject* const storage_offset = PyUnicode_InternFromString("storage_offset");
  PyObject* const stride = PyUnicode_InternFromString("stride");
  PyObject* const fills = PyUnicode_InternFromString("fill_uninitialized_memory");

  Torch() {
    const py::module_ torch = py::module_::import("torch");
    tensor_class = py::object(torch.attr("Tensor")).release().ptr();
    parameter_class = py::object(py::module_::import("torch.nn").attr("Parameter")).release().ptr();
    is_neg = py::object(torch.attr("Tensor").attr("is_neg")).release().ptr();
    empty_strided = py::object(torch.attr("empty_strided")).release().ptr();
    get_default_dtype = py::object(torch.attr("get_default_dtype")).release().ptr();
    from_dlpack = py::object(torch.attr("from_dlpack")).release().ptr();
    is_deterministic =
        py::object(torch.attr("are_deterministic_algorithms_enabled")).release().ptr();
    deterministic = py::module_::import("torch.utils.deterministic").release().ptr();
    strided = py::object(torch.attr("strided")).release().ptr();
    int index = 0;
    for (const char* name : {"float32", "float64", "bfloat16", "int32", "int64", "bool"}) {
      dtypes[index++] = py::object(torch.attr(name)).release().ptr();
    }
    const py::object capsule =
        py::getattr(torch.attr("Tensor"), "__dlpack_c_exchange_api__", py::none());
    if (PyCapsule_IsValid(capsule.ptr(), dlpack::kCapsule)) {
      const auto* api = static_cast<const dlpack::ExchangeApi*>(
          PyCapsule_GetPointer(capsule.ptr(), dlpack::kCapsule));
      if (api->version.major == dlpack::kMajorVersion && api->from_object) exchange = api;
    }
    uses_exchange = exchange != nullptr;
  }
};

Torch& torch() {
  static Torch* const instance = new Torch;
  return *instance;
}

bool set_type(uint8_t code, int bits, Type& type) {
  if (code == dlpack::kFloat && bits == 32) return type = Type::float32, true;
  if (code == dlpack::kFloat && bits == 64) return type = Type::float64, true;
  if (code == dlpack::kBfloat && bits == 16) return type = Type::bfloat16, true;
  if (code == dlpack::kInt && bits == 32) return type = Type::int32, true;
  if (code == dlpack::kInt && bits == 64) return type = Type::int64, true;
  if (code == dlpack::kBool && bits == 8) return type = Type::boolean, true;
  return false;
}

bool read_exchanged(PyObject* object, Tensor& tensor) {
  dlpack::Tensor from;
  if (torch().exchange->from_object(object, &from) != 0) return false;
  if (from.device.type != dlpack::kCpu || from.dtype.lanes != 1 || from.ndim > kMaxDims ||
      !set_type(from.dtype.code, from.dtype.bits, tensor.type)) {
    return false;
  }
  tensor.data = static_cast<char*>(from.data) + from.byte_offset;
  tensor.dims = from.ndim;
  for (int i = 0; i < from.ndim; ++i) {
    tensor.sizes[i] = from.shape[i];
    tensor.strides[i] = from.strides[i];
  }
  return true;
}

bool read_attributes(py::handle object, Tensor& tensor) {
  if (!object.attr("is_cpu").cast<bool>() || object.attr("is_nested").cast<bool>() ||
      object.attr("layout").ptr() != torch().strided) {
    return false;
  }
  const auto sizes = object.attr("shape").cast<py::tuple>();
  if (!type_of(py::object(object.attr("dtype")).ptr(), tensor.type) || sizes.size() > kMaxDims) {
    return false;
  }
  const auto strides =
      py::reinterpret_steal<py::tuple>(PyObject_CallMethodNoArgs(object.ptr(), torch().stride));
  const auto address =
      py::reinterpret_steal<py::object>(PyObject_CallMethodNoArgs(object.ptr(), torch().data_ptr));
  if (!strides || !address) throw py::error_already_set();
  tensor.data = reinterpret_cast<char*>(address.cast<uintptr_t>());
  tensor.dims = static_cast<int>(sizes.size());
  for (int i = 0; i < tensor.dims; ++i) {
    tensor.sizes[i] = sizes[i].cast<int64_t>();
    tensor.strides[i] = strides[i].cast<int64_t>();
  }
  return true;
}

// Whether a tensor's memory is there for certain. If it was freed, and if torch represents zeros by
// a flag alone, the address is the offset in no memory at all: less than a terabyte.
bool is_there(PyObject* object, const Tensor& tensor) {
  const auto address = reinterpret_cast<uintptr_t>(tensor.data);
  if (address >= uintptr_t{1} << 40) return true;
  PyObject* const offset = PyObject_CallMethodNoArgs(object, torch().storage_offset);
  const bool is_offset =
      !offset || address == PyLong_AsUnsignedLongLong(offset) * bytes_of(tensor.type);
  Py_XDECREF(offset);
  PyErr_Clear();
  return !is_offset;
}

}  // namespace

bool Tensor::has_sizes(const int64_t* expected, int size_count) const {
  bool equal = dims == size_count;
  for (int i = 0; equal && i < dims; ++i) equal = sizes[i] == expected[i];
  return equal;
}

int64_t Tensor::count() const {
  int64_t product = 1;
  for (int i = 0; i < dims; ++i) product *= sizes[i];
  return product;
}

bool Tensor::is_contiguous() const {
  int64_t expected = 1;
  for (int i = dims - 1; i >= 0; --i) {
    if (sizes[i] != 1 && strides[i] != expected) return false;
    expected *= sizes[i];
  }
  return true;
}

int64_t bytes_of(Type type) {
  switch (type) {
    case Type::boolean:
      return 1;
    case Type::bfloat16:
      return 2;
    case Type::float32:
    case Type::int32:
      return 4;
    default:
      return 8;
  }
}

PyObject* dtype_of(Type type) { return torch().dtypes[static_cast<int>(type)]; }

bool type_of(PyObject* dtype, Type& type) {
  const auto& known = torch().dtypes;
  const auto found = std::find(std::begin(known), std::end(known), dtype);
  type = static_cast<Type>(found - std::begin(known));
  return found != std::end(known);
}

bool is_plain(PyObject* object) {
  const auto* type = reinterpret_cast<PyObject*>(Py_TYPE(object));
  return type == torch().tensor_class || type == torch().parameter_class;
}

bool read_new(PyObject* object, Tensor& tensor) {
  bool is_read = false;
  if (torch().uses_exchange) {
    is_read = read_exchanged(object, tensor);
  } else {
    try {
      is_read = read_attributes(object, tensor);
    } catch (py::error_already_set&) {  // as a sparse tensor's data_ptr()
    } catch (const py::cast_error&) {   // as a size that is a symbol
    }
  }
  if (!is_read) PyErr_Clear();
  return is_read && (is_there(object, tensor) || tensor.count() == 0);
}

bool read(PyObject* object, Tensor& tensor) {
  if (!is_plain(object) || !read_new(object, tensor)) return false;
  PyObject* const is_negated = PyObject_Vectorcall(torch().is_neg, &object, 1, nullptr);
  if (!is_negated) PyErr_Clear();
  Py_XDECREF(is_negated);
  return is_negated == Py_False;
}

bool is_default(Type type) {
  PyObject* const dtype = PyObject_Vectorcall(torch().get_default_dtype, nullptr, 0, nullptr);
  if (!dtype) PyErr_Clear();
  Py_XDECREF(dtype);
  return dtype == dtype_of(type);
}

PyObject* allocate(Type type, bool is_default, const int64_t* sizes, const int64_t* strides,
                   int count) {
  PyObject* const arguments[] = {PyTuple_New(count), PyTuple_New(count), dtype_of(type)};
  PyObject* made = nullptr;
  if (arguments[0] && arguments[1]) {
    for (int i = 0; i < count; ++i) {
      PyTuple_SET_ITEM(arguments[0], i, PyLong_FromLongLong(sizes[i]));
      PyTuple_SET_ITEM(arguments[1], i, PyLong_FromLongLong(strides[i]));
    }
    PyObject* const keywords = is_default ? nullptr : torch().dtype_keyword;
    made = PyObject_Vectorcall(torch().empty_strided, arguments, 2, keywords);
  }
  Py_XDECREF(arguments[0]);
  Py_XDECREF(arguments[1]);
  return made;
}

namespace {

// A tensor of DLPack with the memory that it describes.
struct Adopted {
  dlpack::ManagedTensor managed;
  std::vector<int64_t> sizes, strides;
  size_t bytes;
  void (*release)(char* data, size_t bytes);

  static void free(dlpack::ManagedTensor* managed) {
    auto* const adopted = static_cast<Adopted*>(managed->context);
    adopted->release(static_cast<char*>(managed->tensor.data), adopted->bytes);
    delete adopted;
  }
  // Of a capsule that nobody took over.
  static void free_capsule(PyObject* capsule) {
    if (!PyCapsule_IsValid(capsule, dlpack::kManaged)) return;
    free(static_cast<dlpack::ManagedTensor*>(PyCapsule_GetPointer(capsule, dlpack::kManaged)));
  }
};

}  // namespace

PyObject* adopt(char* data, size_t bytes, Type type, const std::vector<int64_t>& sizes,
                void (*release)(char* data, size_t bytes)) {
  auto* const adopted = new Adopted{{}, sizes, sizes, bytes, release};
  int64_t stride = 1;
  for (size_t i = sizes.size(); i-- > 0; stride *= sizes[i]) adopted->strides[i] = stride;
  const uint8_t code = type == Type::bfloat16                           ? dlpack::kBfloat
                       : type == Type::float32 || type == Type::float64 ? dlpack::kFloat
                       : type == Type::boolean                          ? dlpack::kBool
                                                                        : dlpack::kInt;
  adopted->managed.context = adopted;
  adopted->managed.free = Adopted::free;
  dlpack::Tensor& tensor = adopted->managed.tensor;
  tensor.data = data;
  tensor.device = {dlpack::kCpu, 0};
  tensor.ndim = static_cast<int32_t>(sizes.size());
  tensor.dtype = {code, static_cast<uint8_t>(8 * bytes_of(type)), 1};
  tensor.shape = adopted->sizes.data();
  tensor.strides = adopted->strides.data();
  PyObject* const capsule =
      PyCapsule_New(&adopted->managed, dlpack::kManaged, Adopted::free_capsule);
  if (!capsule) {
    Adopted::free(&adopted->managed);
    return nullptr;
  }
  PyObject* const made = PyObject_Vectorcall(torch().from_dlpack, &capsule, 1, nullptr);
  Py_DECREF(capsule);
  return made;
}

bool fills_new_memory() {
  PyObject* const is_on = PyObject_Vectorcall(torch().is_deterministic, nullptr, 0, nullptr);
  PyObject* const fills =
      is_on == Py_True ? PyObject_GetAttr(torch().deterministic, torch().fills) : nullptr;
  if (PyErr_Occurred()) PyErr_Clear();
  Py_XDECREF(is_on);
  Py_XDECREF(fills);
  return fills == Py_True;
}

bool read_through_dlpack(bool wanted) {
  torch().uses_exchange = wanted && torch().exchange;
  return torch().uses_exchange;
}

}  // namespace fastlstm::torch
