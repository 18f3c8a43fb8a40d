#pragma once
// A function on its own guarded stack that can stop in the middle and go on later. One runs at a time.
#include <cstddef>
#include <cstdint>

namespace cuda_host {

class Fiber {
 public:
  Fiber();
  Fiber(const Fiber&) = delete;
  ~Fiber();

  void start(void (*body)());  // The next resume() calls body.
  void resume();               // Runs it until it suspends or ends; not from within a fiber.
  bool ended() const { return ended_; }
  bool owns(uintptr_t address) const;  // Whether the address lies on its stack.

  static Fiber* running();  // nullptr outside.
  static void suspend();    // Back to who called resume().

 private:
  static void run();
  void leave();

  char* stack_;
  void* stack_pointer_ = nullptr;
  void (*body_)() = nullptr;
  bool ended_ = true;
  void* fake_stack_ = nullptr;  // AddressSanitizer's
};

}  // namespace cuda_host
