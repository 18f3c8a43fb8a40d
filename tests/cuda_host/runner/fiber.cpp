#include "fiber.h"

#include <sys/mman.h>

#include <cstdlib>

#if !defined(__x86_64__)
#error "the host runner switches stacks in x86-64 assembly"
#endif

// AddressSanitizer wants to know which stack is in use.
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#else
#define __sanitizer_start_switch_fiber(...) ((void)0)
#define __sanitizer_finish_switch_fiber(...) ((void)0)
#endif

// Saves what a call must preserve on this stack, leaves its pointer in *from, and goes on from the stack `to`.
extern "C" void cuda_host_switch(void** from, void* to);
asm(R"(
.text
.globl cuda_host_switch
.type cuda_host_switch, @function
cuda_host_switch:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
.size cuda_host_switch, .-cuda_host_switch
)");

namespace cuda_host {
namespace {

constexpr size_t stack_bytes = 256 << 10, guard_bytes = 4096;

struct Host {
  void* stack_pointer;
  void* fake_stack;
  const void* stack;  // the host's own, as AddressSanitizer told us
  size_t bytes;
};
Host host;
Fiber* current = nullptr;

}  // namespace

Fiber::Fiber() {
  void* memory = mmap(nullptr, guard_bytes + stack_bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED || mprotect(memory, guard_bytes, PROT_NONE)) abort();
  stack_ = static_cast<char*>(memory) + guard_bytes;
}

Fiber::~Fiber() { munmap(stack_ - guard_bytes, guard_bytes + stack_bytes); }

Fiber* Fiber::running() { return current; }

bool Fiber::owns(uintptr_t address) const { return address - reinterpret_cast<uintptr_t>(stack_) < stack_bytes; }

void Fiber::start(void (*body)()) {
  body_ = body;
  ended_ = false;
  // What cuda_host_switch pops: six registers, then run() to return to, which the ABI wants on a stack 8 off 16.
  void** top = reinterpret_cast<void**>(stack_ + stack_bytes) - 8;
  for (int i = 0; i < 8; ++i) top[i] = nullptr;
  top[6] = reinterpret_cast<void*>(&Fiber::run);
  stack_pointer_ = top;
}

__attribute__((no_sanitize("address"))) void Fiber::run() {
  __sanitizer_finish_switch_fiber(nullptr, &host.stack, &host.bytes);
  current->body_();
  current->ended_ = true;
  current->leave();
  __builtin_trap();
}

__attribute__((no_sanitize("address"))) void Fiber::resume() {
  current = this;
  __sanitizer_start_switch_fiber(&host.fake_stack, stack_, stack_bytes);
  cuda_host_switch(&host.stack_pointer, stack_pointer_);
  __sanitizer_finish_switch_fiber(host.fake_stack, nullptr, nullptr);
  current = nullptr;
}

__attribute__((no_sanitize("address"))) void Fiber::leave() {
  __sanitizer_start_switch_fiber(ended_ ? nullptr : &fake_stack_, host.stack, host.bytes);
  cuda_host_switch(&stack_pointer_, host.stack_pointer);
  __sanitizer_finish_switch_fiber(current->fake_stack_, &host.stack, &host.bytes);
}

void Fiber::suspend() { current->leave(); }

}  // namespace cuda_host
