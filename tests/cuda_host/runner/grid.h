#pragma once
// Runs a grid: blocks one after another, each thread of a block a fiber.
#include <cstddef>
#include <cstdint>
#include <functional>

namespace cuda_host {

struct Index {
  unsigned x = 0, y = 0, z = 0;
};

// What the running thread sees of its place.
extern Index threadIdx, blockIdx, gridDim;

// Where in the source a thread waits: for messages, and because threads that wait for each other must do it there.
struct Site {
  const char* file;
  int line;
};

// In which order the threads of a block take turns: 0 forward, 1 reverse, else random with this seed.
extern unsigned thread_order;

// Runs the last block of each grid alone: enough to see where a large grid reaches.
extern bool last_block_only;

void run_grid(unsigned blocks, unsigned threads, const std::function<void()>& kernel);

// Called by the threads.
void barrier(Site);                              // until the whole block is there
const uint64_t* exchange(uint64_t value, Site);  // until the whole warp is there; what its 32 lanes brought
void* shared(const void* name, size_t bytes);    // this block's array of that name, at first all NaN
unsigned lane();

// What the race build's checker asks. Blocks have no order among them, threads of a block that of its barriers.
struct Place {
  unsigned launch, block, thread, barriers;
};
Place place();

// Overridden by race.cpp: these bytes are new, whatever was there before.
void forget(const void* p, size_t bytes);

// Prints the message and who ran, and ends the process.
[[noreturn]] __attribute__((format(printf, 1, 2))) void fail(const char* format, ...);

}  // namespace cuda_host
