// Arrays for the kernels, which show every access outside of them.
#pragma once

#include <cstdint>
#include <cstring>
#include <new>
#include <utility>

#include "../../csrc/lstm.h"

namespace fastlstm {

inline int64_t size_of(DType dtype) {
  return dtype == DType::float64 ? 8 : dtype == DType::float32 ? 4 : 2;
}

// The distance from 1 to the next larger number.
inline double eps_of(DType dtype) {
  return dtype == DType::float64 ? 0x1p-52 : dtype == DType::float32 ? 0x1p-23 : 0x1p-7;
}

// `count` numbers in a heap block of exactly that size, so that AddressSanitizer finds accesses
// beyond them. All bytes start as 0xFF, a NaN in every type, so that reads of unwritten numbers
// show in the results. `shift` numbers before the first give it an unaligned address, as a slice of
// a tensor may have.
class Buffer {
 public:
  Buffer() = default;
  Buffer(DType dtype, int64_t count, int64_t shift = 0)
      : dtype_(dtype), count_(count), shift_(shift * size_of(dtype)) {
    const size_t bytes = count * size_of(dtype) + shift_;
    block_ = static_cast<unsigned char*>(::operator new(bytes, std::align_val_t{64}));
    std::memset(block_, 0xFF, bytes);
  }
  Buffer(Buffer&& other) noexcept { *this = static_cast<Buffer&&>(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(block_, other.block_);
    dtype_ = other.dtype_;
    count_ = other.count_;
    shift_ = other.shift_;
    return *this;
  }
  ~Buffer() { ::operator delete(block_, std::align_val_t{64}); }

  int64_t count() const { return count_; }
  // Null if the buffer was never made.
  void* data() const { return block_ ? block_ + shift_ : nullptr; }

  double get(int64_t i) const {
    if (dtype_ == DType::float64) return load<double>(i);
    if (dtype_ == DType::float32) return load<float>(i);
    const uint32_t bits = uint32_t{load<uint16_t>(i)} << 16;
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
  }

  // Rounds to the nearest number of the type, ties to even.
  void set(int64_t i, double value) {
    if (dtype_ == DType::float64) return store(i, value);
    const float single = static_cast<float>(value);
    if (dtype_ == DType::float32) return store(i, single);
    uint32_t bits;
    std::memcpy(&bits, &single, sizeof(bits));
    store(i, static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16));
  }

  bool has_the_bits_of(const Buffer& other) const {
    const size_t bytes = count_ * size_of(dtype_);
    return bytes == static_cast<size_t>(other.count_ * size_of(other.dtype_)) &&
           (bytes == 0 || std::memcmp(block_ + shift_, other.block_ + other.shift_, bytes) == 0);
  }

  // Gives number i the bytes that it began with.
  void poison(int64_t i) {
    std::memset(block_ + shift_ + i * size_of(dtype_), 0xFF, size_of(dtype_));
  }

  // Whether number i still has the bytes that it began with.
  bool is_untouched(int64_t i) const {
    const unsigned char* byte = block_ + shift_ + i * size_of(dtype_);
    for (int64_t k = 0; k < size_of(dtype_); ++k) {
      if (byte[k] != 0xFF) return false;
    }
    return true;
  }

 private:
  template <class T>
  T load(int64_t i) const {
    T value;
    std::memcpy(&value, block_ + shift_ + i * sizeof(T), sizeof(T));
    return value;
  }
  template <class T>
  void store(int64_t i, T value) {
    std::memcpy(block_ + shift_ + i * sizeof(T), &value, sizeof(T));
  }

  unsigned char* block_ = nullptr;
  DType dtype_ = DType::float32;
  int64_t count_ = 0, shift_ = 0;
};

}  // namespace fastlstm
