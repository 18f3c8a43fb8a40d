#include "grid.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "fiber.h"

namespace cuda_host {

Index threadIdx, blockIdx, gridDim;
unsigned thread_order = 0;
bool last_block_only = false;

namespace {

constexpr unsigned warp_lanes = 32, most_threads = 1024;
constexpr size_t most_shared = 48 << 10;  // what a kernel gets without asking for more

struct Thread {
  Fiber fiber;
  bool waits;
  Site site;
};

// Of threads that wait for each other.
struct Meeting {
  unsigned arrived, first;  // how many are there, and who came first
};

struct Warp {
  Meeting meeting;
  uint64_t brought[warp_lanes], met[warp_lanes];  // `met` stays until the next exchange is complete
};

struct Array {
  void* data;
  size_t bytes;
};

// The block that runs.
std::vector<std::unique_ptr<Thread>> threads;  // grows, and is kept: stacks cost more than switches
std::vector<Warp> warps;
std::map<const void*, Array> arrays;
Meeting block;
unsigned count, running, barriers, launches;
const std::function<void()>* kernel;

// The running thread joins; whether it is the last of `expected`. All must wait at the same line.
bool join(Meeting& meeting, unsigned expected, Site site) {
  if (meeting.arrived == 0) meeting.first = running;
  const Site other = threads[meeting.first]->site;
  if (meeting.arrived > 0 && (other.line != site.line || std::strcmp(other.file, site.file)))
    fail("divergent: thread %u waits at %s:%d, this one at %s:%d", meeting.first, other.file, other.line, site.file,
         site.line);
  threads[running]->waits = true;
  threads[running]->site = site;
  if (++meeting.arrived < expected) return false;
  meeting.arrived = 0;
  return true;
}

void release(unsigned first, unsigned last) {
  for (unsigned i = first; i < last; ++i) threads[i]->waits = false;
}

[[noreturn]] void deadlock() {
  std::string waiting;
  std::map<std::string, int> sites;
  int ended = 0;
  for (unsigned i = 0; i < count; ++i) {
    const Thread& t = *threads[i];
    if (t.fiber.ended())
      ++ended;
    else
      ++sites[std::string(t.site.file) + ":" + std::to_string(t.site.line)];
  }
  for (const auto& [site, n] : sites) waiting += "; " + std::to_string(n) + " wait at " + site;
  fail("deadlock: %d of %u threads ended%s", ended, count, waiting.c_str());
}

void run_block(std::vector<unsigned>& order, std::mt19937& random) {
  warps.assign((count + warp_lanes - 1) / warp_lanes, {});
  block = {};
  barriers = 0;
  for (unsigned i = 0; i < count; ++i) {
    threads[i]->waits = false;
    threads[i]->fiber.start([] { (*kernel)(); });
  }
  for (unsigned left = count; left > 0;) {
    if (thread_order > 1) std::shuffle(order.begin(), order.end(), random);
    bool moved = false;
    for (const unsigned i : order) {
      Thread& t = *threads[i];
      if (t.fiber.ended() || t.waits) continue;
      moved = true;
      running = i;
      threadIdx.x = i;
      t.fiber.resume();
      left -= t.fiber.ended();
    }
    if (!moved) deadlock();
  }
  for (const auto& [name, array] : arrays) free(array.data);
  arrays.clear();
}

}  // namespace

void run_grid(unsigned blocks, unsigned n, const std::function<void()>& body) {
  if (n < 1 || n > most_threads) fail("a block must have 1 to %u threads, got %u", most_threads, n);
  while (threads.size() < n) threads.push_back(std::make_unique<Thread>());
  count = n;
  kernel = &body;
  gridDim.x = blocks;
  ++launches;
  std::vector<unsigned> order(n);
  for (unsigned i = 0; i < n; ++i) order[i] = thread_order == 1 ? n - 1 - i : i;
  std::mt19937 random(thread_order);
  for (unsigned b = last_block_only ? blocks - 1 : 0; b < blocks; ++b) {
    blockIdx.x = thread_order == 1 && !last_block_only ? blocks - 1 - b : b;
    run_block(order, random);
  }
}

void barrier(Site site) {
  if (join(block, count, site)) {
    ++barriers;
    release(0, count);
  }
  Fiber::suspend();
}

const uint64_t* exchange(uint64_t value, Site site) {
  if (count % warp_lanes)
    fail("%s:%d: lanes meet in a block of %u threads, which is no whole warps", site.file, site.line, count);
  Warp& warp = warps[running / warp_lanes];
  warp.brought[lane()] = value;
  if (join(warp.meeting, warp_lanes, site)) {
    std::memcpy(warp.met, warp.brought, sizeof warp.met);
    release(running - lane(), running - lane() + warp_lanes);
  }
  Fiber::suspend();
  return warp.met;
}

void* shared(const void* name, size_t bytes) {
  Array& array = arrays[name];
  if (!array.data) {
    if (posix_memalign(&array.data, 16, bytes)) abort();
    array.bytes = bytes;
    std::memset(array.data, 0xff, bytes);
    forget(array.data, bytes);
    size_t total = 0;
    for (const auto& [other, a] : arrays) total += a.bytes;
    if (total > most_shared) fail("shared memory must be at most %zu bytes, got %zu", most_shared, total);
  }
  return array.data;
}

unsigned lane() { return running % warp_lanes; }

Place place() { return {launches, blockIdx.x, running, barriers}; }

__attribute__((weak)) void forget(const void*, size_t) {}

void fail(const char* format, ...) {
  va_list args;
  va_start(args, format);
  std::fputs("cuda_host: ", stderr);
  std::vfprintf(stderr, format, args);
  std::fprintf(stderr, " (block %u, thread %u)\n", blockIdx.x, threadIdx.x);
  std::_Exit(3);
}

}  // namespace cuda_host
