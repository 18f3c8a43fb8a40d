// Finds data races of a kernel. GCC's -fsanitize=thread calls these hooks at each access to memory; its own runtime,
// which knows nothing of blocks, is not linked. Two accesses to a byte race if one writes, not both are atomic, and
//   - threads of different blocks made them, or
//   - different threads of a block did, with no barrier between.
// Of a byte it remembers the last writer, the last two threads that read it, and one reader of an earlier block. That
// can miss a race behind other accesses; it invents none.
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>

#include "fiber.h"
#include "grid.h"

namespace cuda_host {
namespace {

struct Access {
  Place place;  // launch 0: none
  bool atomic;
  void* code;
};

struct Byte {
  uintptr_t address;
  Access write, read, read_before, read_elsewhere;
};

constexpr size_t page = 4096, pages = 2048, slots = page * pages;

// The record of a byte: a hash table that each launch starts anew. Neighbours stay neighbours within a page.
Byte& record(uintptr_t address, unsigned launch) {
  static Byte* const table = static_cast<Byte*>(
      mmap(nullptr, slots * sizeof(Byte), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  static unsigned* const used = static_cast<unsigned*>(calloc(slots, sizeof(unsigned)));
  size_t slot = (address / page * 0x9e3779b97f4a7c15u >> 53) * page + address % page;
  while (used[slot] == launch && table[slot].address != address) slot = (slot + page) % slots;
  if (used[slot] != launch) {
    used[slot] = launch;
    table[slot] = {address, {}, {}, {}, {}};
  }
  return table[slot];
}

bool ordered(const Access& a, const Access& b) {
  if (!a.place.launch || (a.atomic && b.atomic)) return true;
  if (a.place.block != b.place.block) return false;
  return a.place.thread == b.place.thread || a.place.barriers != b.place.barriers;
}

void check(const char* what, uintptr_t address, const Access& a, const Access& b) {
  if (ordered(a, b)) return;
  std::fprintf(stderr, "cuda_host: code %p\ncuda_host: code %p\n", a.code, b.code);
  fail("race: %s at %p, block %u thread %u and block %u thread %u", what, reinterpret_cast<void*>(address),
       a.place.block, a.place.thread, b.place.block, b.place.thread);
}

void touch(const volatile void* p, size_t bytes, bool writes, bool atomic, void* code) {
  Fiber* fiber = Fiber::running();
  const uintptr_t begin = reinterpret_cast<uintptr_t>(p);
  if (!fiber || fiber->owns(begin)) return;
  const Access now{place(), atomic, code};
  for (uintptr_t address = begin; address < begin + bytes; ++address) {
    Byte& byte = record(address, now.place.launch);
    check(writes ? "write after write" : "read after write", address, byte.write, now);
    if (writes) {
      check("write after read", address, byte.read, now);
      check("write after read", address, byte.read_before, now);
      check("write after read", address, byte.read_elsewhere, now);
      byte.write = now;
    } else {
      if (byte.read.place.launch && byte.read.place.block != now.place.block) byte.read_elsewhere = byte.read;
      if (byte.read.place.thread != now.place.thread) byte.read_before = byte.read;
      byte.read = now;
    }
  }
}

}  // namespace

void forget(const void* p, size_t bytes) {
  const uintptr_t begin = reinterpret_cast<uintptr_t>(p);
  for (uintptr_t address = begin; address < begin + bytes; ++address)
    record(address, place().launch) = {address, {}, {}, {}, {}};
}

}  // namespace cuda_host

#define CODE __builtin_return_address(0)
#define ACCESS(name, bytes)                                                           \
  void __tsan_read##name(void* p) { cuda_host::touch(p, bytes, false, false, CODE); } \
  void __tsan_write##name(void* p) { cuda_host::touch(p, bytes, true, false, CODE); }
#define UNALIGNED(bytes)                                                                         \
  void __tsan_unaligned_read##bytes(void* p) { cuda_host::touch(p, bytes, false, false, CODE); } \
  void __tsan_unaligned_write##bytes(void* p) { cuda_host::touch(p, bytes, true, false, CODE); }

extern "C" {
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
ACCESS(1, 1)
ACCESS(2, 2)
ACCESS(4, 4)
ACCESS(8, 8)
ACCESS(16, 16)
UNALIGNED(2)
UNALIGNED(4)
UNALIGNED(8)
UNALIGNED(16)
void __tsan_read_range(void* p, size_t bytes) { cuda_host::touch(p, bytes, false, false, CODE); }
void __tsan_write_range(void* p, size_t bytes) { cuda_host::touch(p, bytes, true, false, CODE); }
int __tsan_atomic32_fetch_add(volatile int* p, int x, int) {
  cuda_host::touch(p, sizeof *p, true, true, CODE);
  const int before = *p;
  *p = before + x;
  return before;
}
}
