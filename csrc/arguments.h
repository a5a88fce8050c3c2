// How the keyword arguments of a Python function become the fields of a struct.
//
// A call has about 40 fields and a one-step LSTM takes a few microseconds, so this is written
// against the C API of Python: pybind11's dispatcher takes 3 times as long.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "lstm.h"

namespace fastlstm {

inline DType parse_dtype(std::string_view name) {
  if (name == "float32") return DType::float32;
  if (name == "float64") return DType::float64;
  if (name == "bfloat16") return DType::bfloat16;
  if (name == "float16") return DType::float16;
  throw std::invalid_argument("dtype: expected float32, float64, bfloat16 or float16, got " +
                              std::string(name));
}

// For each type of a field: `name`, the type of its values in Python, and read(value, field), which
// returns false if the value is of another type or out of range, without a Python error set.
template <class Field>
struct Python;

template <>
struct Python<int64_t> {
  static constexpr const char* name = "int";
  static bool read(PyObject* value, int64_t& field) {
    if (PyLong_Check(value)) {
      int overflow = 0;
      field = PyLong_AsLongLongAndOverflow(value, &overflow);
      return overflow == 0;
    }
    if (!PyIndex_Check(value)) return false;
    const auto index = pybind11::reinterpret_steal<pybind11::object>(PyNumber_Index(value));
    if (!index) PyErr_Clear();
    return index && read(index.ptr(), field);
  }
};

template <>
struct Python<int> {
  static constexpr const char* name = "int";
  static bool read(PyObject* value, int& field) {
    int64_t wide = 0;
    if (!Python<int64_t>::read(value, wide)) return false;
    field = static_cast<int>(wide);
    return field == wide;
  }
};

template <>
struct Python<bool> {
  static constexpr const char* name = "bool";
  static bool read(PyObject* value, bool& field) {
    field = value == Py_True;
    return PyBool_Check(value);
  }
};

// The address of a tensor's first element; 0 is null.
template <class Element>
struct Python<Element*> {
  static constexpr const char* name = "int";
  static bool read(PyObject* value, Element*& field) {
    if (!PyLong_Check(value)) return false;
    const uint64_t address = PyLong_AsUnsignedLongLong(value);
    if (address == UINT64_MAX && PyErr_Occurred()) {
      PyErr_Clear();
      return false;
    }
    field = reinterpret_cast<Element*>(address);
    return true;
  }
};

template <>
struct Python<int64_t[3]> {
  static constexpr const char* name = "tuple[int, int, int]";
  static bool read(PyObject* value, int64_t (&field)[3]) {
    if (!PyTuple_Check(value) || PyTuple_GET_SIZE(value) != 3) return false;
    for (int i = 0; i < 3; ++i) {
      if (!Python<int64_t>::read(PyTuple_GET_ITEM(value, i), field[i])) return false;
    }
    return true;
  }
};

// Group 0's address, and the elements to the next group's.
template <>
struct Python<LstmWeight> {
  static constexpr const char* name = "tuple[int, int]";
  static bool read(PyObject* value, LstmWeight& field) {
    return PyTuple_Check(value) && PyTuple_GET_SIZE(value) == 2 &&
           Python<const void*>::read(PyTuple_GET_ITEM(value, 0), field.data) &&
           Python<int64_t>::read(PyTuple_GET_ITEM(value, 1), field.stride);
  }
};

// The characters belong to the Python object.
template <>
struct Python<std::string_view> {
  static constexpr const char* name = "str";
  static bool read(PyObject* value, std::string_view& field) {
    if (!PyUnicode_Check(value)) return false;
    Py_ssize_t size = 0;
    const char* text = PyUnicode_AsUTF8AndSize(value, &size);
    if (!text) PyErr_Clear();
    if (text) field = {text, static_cast<size_t>(size)};
    return text;
  }
};

template <>
struct Python<DType> {
  static constexpr const char* name = "str";
  static bool read(PyObject* value, DType& field) {
    std::string_view text;
    if (!Python<std::string_view>::read(value, text)) return false;
    field = parse_dtype(text);
    return true;
  }
};

// One flag for each group, from any sequence. Unlike other arrays it is copied here.
class Flags {
 public:
  static constexpr const char* name = "collections.abc.Sequence[bool] | bytes";

  bool read(PyObject* value, const bool*& field) {
    const auto items =
        pybind11::reinterpret_steal<pybind11::object>(PySequence_Fast(value, "a sequence"));
    if (!items || PyUnicode_Check(value)) {
      PyErr_Clear();
      return false;
    }
    size_ = PySequence_Fast_GET_SIZE(items.ptr());
    flags_ = std::make_unique<bool[]>(size_);
    for (int64_t i = 0; i < size_; ++i) {
      const int flag = PyObject_IsTrue(PySequence_Fast_GET_ITEM(items.ptr(), i));
      if (flag < 0) PyErr_Clear();
      if (flag < 0) return false;
      flags_[i] = flag;
    }
    field = flags_.get();
    return true;
  }

  void check(int64_t G) const {
    if (size_ == G) return;
    throw std::invalid_argument("reverse: expected " + std::to_string(G) + " flags, got " +
                                std::to_string(size_));
  }

 private:
  std::unique_ptr<bool[]> flags_;
  int64_t size_ = 0;
};

// A Python function run(fields) that takes keyword arguments alone: exactly the fields of a struct,
// by the names of for_each_field. The struct has `shape`. There is one function for each struct.
template <class Fields>
class KeywordFunction {
 public:
  using Run = void (*)(const Fields&);

  // Adds the function to a module. The first line of its docstring is its signature, as a stub.
  static void define(pybind11::module_& module, const char* name, Run run, const char* summary) {
    Fields fields{};
    std::string signature = std::string(name) + "(*";
    for_each_field(fields, [&](const char* field, auto& value) {
      keys_.push_back(PyUnicode_InternFromString(field));
      signature += std::string(", ") + field + ": " + type_name(value);
    });
    run_ = run;
    name_ = name;
    doc_ = signature + ") -> None\n\n" + summary;
    const auto function = reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(call));
    method_ = {name_.c_str(), function, METH_VARARGS | METH_KEYWORDS, doc_.c_str()};
    const pybind11::object in_module = module.attr("__name__");
    module.attr(name) = pybind11::reinterpret_steal<pybind11::object>(
        PyCFunction_NewEx(&method_, nullptr, in_module.ptr()));
  }

 private:
  template <class Field>
  static const char* type_name(Field&) {
    return Python<Field>::name;
  }
  static const char* type_name(const bool*&) { return Flags::name; }

  template <class Field>
  static bool read(PyObject* value, Field& field, Flags&) {
    return Python<Field>::read(value, field);
  }
  static bool read(PyObject* value, const bool*& field, Flags& flags) {
    return flags.read(value, field);
  }

  static PyObject* call(PyObject*, PyObject* positional, PyObject* keywords) {
    try {
      if (PyTuple_GET_SIZE(positional) > 0) {
        throw pybind11::type_error(name_ + ": expected keyword arguments alone");
      }
      Fields fields{};
      Flags flags;
      auto key = keys_.begin();
      for_each_field(fields, [&](const char* name, auto& field) {
        PyObject* value = keywords ? PyDict_GetItemWithError(keywords, *key++) : nullptr;
        if (!value) throw pybind11::type_error(name_ + ": missing argument " + name);
        if (!read(value, field, flags)) refuse(name, type_name(field), value);
      });
      if (PyDict_GET_SIZE(keywords) > static_cast<Py_ssize_t>(keys_.size()))
        refuse_unknown(keywords);
      flags.check(fields.shape.G);
      run_(fields);
      Py_RETURN_NONE;
    } catch (pybind11::error_already_set& error) {
      error.restore();
    } catch (const pybind11::builtin_exception& error) {
      error.set_error();
    } catch (const std::bad_alloc&) {
      PyErr_NoMemory();
    } catch (const std::invalid_argument& error) {
      PyErr_SetString(PyExc_ValueError, error.what());
    } catch (const std::exception& error) {
      PyErr_SetString(PyExc_RuntimeError, error.what());
    }
    return nullptr;
  }

  [[noreturn]] static void refuse(const char* name, const char* type, PyObject* value) {
    const std::string got = PyLong_Check(value) ? pybind11::repr(value).template cast<std::string>()
                                                : Py_TYPE(value)->tp_name;
    throw pybind11::type_error(name_ + ": " + name + ": expected " + type + ", got " + got);
  }

  // Called when there are more arguments than fields.
  [[noreturn]] static void refuse_unknown(PyObject* keywords) {
    PyObject *key = nullptr, *value = nullptr;
    Py_ssize_t position = 0;
    std::string unknown;
    while (PyDict_Next(keywords, &position, &key, &value)) {
      bool is_known = false;
      for (PyObject* known : keys_) is_known |= PyUnicode_Compare(key, known) == 0;
      if (!is_known) unknown = pybind11::handle(key).template cast<std::string>();
    }
    throw pybind11::type_error(name_ + ": unknown argument " + unknown);
  }

  static inline std::vector<PyObject*> keys_;  // interned, and never freed
  static inline Run run_;
  static inline std::string name_, doc_;
  static inline PyMethodDef method_;
};

}  // namespace fastlstm
