#include "buffer_pool.h"

#include <pthread.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>

#include "huge_pages.h"

namespace fastlstm {
namespace {

struct Buffer {
  char* data;
  size_t bytes;
};

// Tensors are freed in any thread, while the process ends too. Nothing here runs Python code, which
// could free one: the lock is never asked for twice.
class Pool {
 public:
  Buffer take(size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    auto found = spare_.end();
    for (auto it = spare_.begin(); it != spare_.end(); ++it) {
      const bool fits = it->bytes >= bytes;
      if (fits && (found == spare_.end() || it->bytes < found->bytes)) found = it;
    }
    if (found == spare_.end()) return allocate(bytes);
    const Buffer buffer = *found;
    spare_.erase(found);
    return buffer;
  }

  void give_back(Buffer buffer) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (buffer.bytes > limit_) return std::free(buffer.data);
    spare_.push_back(buffer);
    free_beyond(limit_);
  }

  void limit(size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    limit_ = bytes;
    free_beyond(limit_);
  }

  std::vector<size_t> spare() {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::vector<size_t> sizes;
    for (const Buffer& buffer : spare_) sizes.push_back(buffer.bytes);
    return sizes;
  }

  void lock() { mutex_.lock(); }
  void unlock() { mutex_.unlock(); }

 private:
  Buffer allocate(size_t bytes) {
    try {
      char* const data = allocate_aligned(bytes);
      return {data, bytes};
    } catch (const std::bad_alloc&) {
      free_beyond(0);
      char* const data = allocate_aligned(bytes);
      return {data, bytes};
    }
  }

  void free_beyond(size_t limit) {
    size_t total = 0;
    for (const Buffer& buffer : spare_) total += buffer.bytes;
    auto kept = spare_.begin();
    for (; kept != spare_.end() && total > limit; ++kept) {
      total -= kept->bytes;
      std::free(kept->data);
    }
    spare_.erase(spare_.begin(), kept);
  }

  std::mutex mutex_;
  std::vector<Buffer> spare_;  // oldest first
  size_t limit_ = size_t{256} << 20;
};

// It outlives every tensor. A process that is forked finds it unlocked.
Pool& pool() {
  static Pool* const instance = [] {
    pthread_atfork([] { pool().lock(); }, [] { pool().unlock(); }, [] { pool().unlock(); });
    return new Pool;
  }();
  return *instance;
}

int64_t bytes_of(torch::Type type, const std::vector<int64_t>& sizes) {
  int64_t bytes = torch::bytes_of(type);
  for (const int64_t size : sizes) bytes *= size;
  return bytes;
}

}  // namespace

bool is_pooled(torch::Type type, const std::vector<int64_t>& sizes) {
  return bytes_of(type, sizes) >= 1 << 20;
}

PyObject* pooled_empty(torch::Type type, const std::vector<int64_t>& sizes) {
  const int64_t bytes = bytes_of(type, sizes);
  Buffer buffer;
  try {
    buffer = pool().take(bytes);
  } catch (const std::bad_alloc&) {
    PyErr_Format(PyExc_RuntimeError, "not enough memory: a tensor of %lld bytes was asked for",
                 static_cast<long long>(bytes));
    return nullptr;
  }
  if (torch::fills_new_memory()) std::memset(buffer.data, 0xff, bytes);  // NaN, whatever the type
  return torch::adopt(buffer.data, buffer.bytes, type, sizes,
                      [](char* data, size_t size) { pool().give_back({data, size}); });
}

std::vector<size_t> spare_buffers() { return pool().spare(); }

void limit_spare_buffers(size_t bytes) { pool().limit(bytes); }

}  // namespace fastlstm
