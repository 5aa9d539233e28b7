// A session of a model, and memory for what goes in and comes out; see edgec.h for the interface.
#ifndef EDGEC_SESSION_HPP
#define EDGEC_SESSION_HPP

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>
#include <stdexcept>
#include <vector>

#include "edgec.h"

namespace edgec {

constexpr std::size_t kAlignment = 64;  // memory aligned to this is used in place

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};
using Buffer = std::unique_ptr<void, Free>;

inline Buffer allocate(std::size_t bytes) {
  // aligned_alloc takes whole multiples of the alignment.
  Buffer buffer(std::aligned_alloc(kAlignment, (bytes / kAlignment + 1) * kAlignment));
  if (!buffer) throw std::bad_alloc();
  return buffer;
}

// One for each thread or stream that runs the model; they share its weights.
class Session {
 public:
  // 0 threads means to compute on all cores. Programs of one model that are to share their state
  // need one edgec_session: see edgec.h.
  explicit Session(const edgec_model& model, int threads = 0, int program = 0)
      : model_(model), program_(program), session_(model.open(threads), model.close) {
    if (!session_) throw std::bad_alloc();
    const edgec_program& shapes = model.programs[program];
    for (int i = 0; i < shapes.input_count; ++i) add(shapes.inputs[i], inputs_);
    for (int i = 0; i < shapes.output_count; ++i) add(shapes.outputs[i], outputs_);
  }

  // Memory of the program's inputs[index] and outputs[index], dense and row-major.
  void* input(int index) { return inputs_[index]; }
  const void* output(int index) const { return outputs_[index]; }

  // Throws std::out_of_range if an input holds an index that is in no row of its table.
  void run() {
    const int status =
        model_.run_program(session_.get(), program_, inputs_.data(), outputs_.data(), nullptr);
    if (status == EDGEC_BAD_INDEX) throw std::out_of_range(model_.error(session_.get()));
    if (status != 0) throw std::bad_alloc();
  }

  // Begin anew, if the model has state: all of it is zeros.
  void reset() { model_.reset(session_.get()); }

 private:
  void add(const edgec_tensor& tensor, std::vector<void*>& pointers) {
    buffers_.push_back(allocate(tensor.bytes));
    pointers.push_back(buffers_.back().get());
  }

  const edgec_model& model_;
  const int program_;
  std::unique_ptr<edgec_session, void (*)(edgec_session*)> session_;
  std::vector<Buffer> buffers_;
  std::vector<void*> inputs_, outputs_;
};

}  // namespace edgec

#endif
