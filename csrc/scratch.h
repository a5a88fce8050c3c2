// Memory that a call works in and leaves behind for the thread's next call.
//
// Fresh memory is cleared by the system page by page: for 36 MB that took 10 ms, as long as the
// rest of that call. More than kKeptBytes are freed after the call.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "huge_pages.h"

namespace fastlstm {

// Pieces of the thread's memory, which are free again when the object is destroyed. Objects of one
// thread may be nested: a call may run Python code, which may run another call.
class Scratch {
 public:
  Scratch() : mark_(memory().used) {}
  ~Scratch() { memory().release(mark_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  // So many bytes, 64-byte aligned, with anything in them.
  void* take(size_t bytes) {
    void* const piece = memory().take(bytes);
    return is_poisoned ? std::memset(piece, 0xff, bytes) : piece;
  }

  // Whether all of it is NaN at first, for tests.
  static inline bool is_poisoned = false;

 private:
  static constexpr size_t kKeptBytes = size_t{512} * 1024 * 1024;
  struct Block {
    char* data;
    size_t bytes;
  };
  struct Mark {
    size_t block, offset;
  };

  // Blocks are filled in order. A call that needs several makes the next one find a single block.
  struct Memory {
    std::vector<Block> blocks;
    Mark used = {0, 0};

    ~Memory() { free_from(0); }

    void* take(size_t bytes) {
      bytes = (bytes + 63) / 64 * 64;
      while (used.block < blocks.size() && blocks[used.block].bytes - used.offset < bytes) {
        used = {used.block + 1, 0};
      }
      if (used.block == blocks.size()) add(bytes);
      char* const piece = blocks[used.block].data + used.offset;
      used.offset += bytes;
      return piece;
    }

    void add(size_t bytes) {
      char* const data = allocate_aligned(bytes);
      blocks.push_back({data, bytes});
      used.offset = 0;
    }

    void free_from(size_t first) {
      for (size_t i = first; i < blocks.size(); ++i) std::free(blocks[i].data);
      blocks.resize(first);
    }

    void release(Mark mark) {
      used = mark;
      if (mark.block > 0 || mark.offset > 0) return;
      size_t total = 0;
      for (const Block& block : blocks) total += block.bytes;
      if (blocks.size() < 2 && total <= kKeptBytes) return;
      free_from(0);
      if (total > kKeptBytes) return;
      add(total);
    }
  };

  static Memory& memory() {
    static thread_local Memory instance;
    return instance;
  }

  const Mark mark_;
};

}  // namespace fastlstm
